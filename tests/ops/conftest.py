"""Where the kernels of Triton are tested: on a GPU where there is one, else by Triton's interpreter."""

import importlib.util
from types import ModuleType

import pytest
import torch

from piip.ops import deformable


@pytest.fixture(scope="session")
def interpreted_kernels() -> ModuleType:
    """A second copy of the kernels' module, which Triton interprets; the first stays as it is."""
    pytest.importorskip("triton")
    from piip.ops import gpu_kernels

    spec = importlib.util.spec_from_file_location("interpreted_kernels", gpu_kernels.__file__)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # Triton looks at it where a kernel is defined
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def triton_device(request, monkeypatch) -> str:
    """Where ``fused`` runs the kernels of Triton; on a CPU they take the place of numba's while a test runs."""
    if torch.cuda.is_available():
        return "cuda"
    kernels = request.getfixturevalue("interpreted_kernels")
    pytest.importorskip("numba")
    import triton.language as tl

    from piip.ops import cpu, gpu

    monkeypatch.setattr(gpu, "kernels", kernels)
    monkeypatch.setattr(cpu, "forward", gpu.forward)
    monkeypatch.setattr(cpu, "backward", gpu.backward)
    monkeypatch.setitem(deformable.KERNEL_DTYPES, "cpu", deformable.KERNEL_DTYPES["cuda"])
    # These are kernels themselves, compiled ones, if Triton was imported without its interpreter.
    add, largest = tl.standard._sum_combine, tl.standard._elementwise_max
    monkeypatch.setattr(tl, "sum", lambda tensor, axis: tl.reduce(tensor, axis, add))
    monkeypatch.setattr(tl, "max", lambda tensor, axis: tl.reduce(tensor, axis, largest))
    return "cpu"
