"""Triton's kernels compile for GPUs, on machines without one: what its interpreter cannot tell."""

import re
import subprocess
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

WIDTHS = (4, 6, 12, 24, 25, 50, 100)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def compiled(monkeypatch):
    """A function that returns the kernels of a call on a GPU of some compute capability."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    from piip.ops import gpu, gpu_kernels

    kernels = []

    class Launcher:
        """Compiles what it ought to launch."""

        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, programs):
            return lambda *args, **options: kernels.append(
                self.kernel.warmup(*args, grid=programs, **options)
            )

    def compile_call(capability, *, width, dtype, levels=1, points=4, heads=16, by_grid=True):
        stand_in = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
            get_current_device=lambda: capability,  # a number of its own: Triton keeps kernels by device
            get_current_stream=lambda device: 0,
        )
        driver.set_active(stand_in)
        value = torch.zeros(1, 12 * levels, heads, width, dtype=dtype)
        logits = torch.zeros(1, 6, heads, levels, points, dtype=dtype)
        offsets = torch.zeros(*logits.shape, 2, dtype=dtype)
        where = (None, [2, 3]) if by_grid else (torch.zeros(1, 6, 2, dtype=torch.float64), [])
        shapes = [number for level in range(levels) for number in (3, 4, 12 * level)]
        output = gpu.forward(value, shapes, *where, offsets, logits)
        gpu.backward(output, value, shapes, *where, offsets, logits)
        return {kernel.metadata.name: kernel for kernel in kernels}

    names = ("forward_kernel", "backward_kernel", "collect_kernel")
    launchers = {name: Launcher(getattr(gpu_kernels, name)) for name in names}
    monkeypatch.setattr(gpu, "kernels", SimpleNamespace(**launchers))
    yield compile_call
    driver.set_active(None)


def spilled(kernel, folder) -> int:
    """Bytes of registers that a thread of a kernel keeps in memory."""
    from triton import knobs

    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", path]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


def test_a_training_step_compiles(compiled, tmp_path):
    kernels = compiled(90, width=12, dtype=torch.bfloat16)
    assert set(kernels) == {"forward_kernel", "backward_kernel"}
    assert not any(spilled(kernel, tmp_path) for kernel in kernels.values())
    # Four channels at once, read and added: one by one would take several times as long.
    assert re.search(r"ld\.global[.\w]*\.(v2\.b32|b64)", kernels["forward_kernel"].asm["ptx"])
    assert "add.v4.f32" in kernels["backward_kernel"].asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_compiles_without_spilling(compiled, tmp_path, dtype, capability):
    for width in WIDTHS:
        kernels = compiled(capability, width=width, dtype=dtype)
        assert not any(spilled(kernel, tmp_path) for kernel in kernels.values()), width


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_levels_references_and_deterministic_gradients_compile(compiled, tmp_path, dtype):
    torch.use_deterministic_algorithms(True)
    try:
        kernels = compiled(90, width=32, dtype=dtype, levels=4, heads=8, by_grid=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert set(kernels) == {"forward_kernel", "backward_kernel", "collect_kernel"}
    assert not any(spilled(kernel, tmp_path) for kernel in kernels.values())
