"""Where and with what something was measured."""

import datetime
import importlib.util
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from piip import __version__

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """Return what a number means nothing without."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numba": _version("numba"),
        "triton": _version("triton"),
        "piip": __version__,
        "commit": git.stdout.strip(),
    }


def matmul_peak(dtype: torch.dtype, device: str = "cpu", side: int = 2048, rounds: int = 10) -> float:
    """Return the best rate of a matrix product or a convolution in operations per second."""
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    x = torch.randn(1, 768, 70, 70, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(768, 768, 3, 3, dtype=dtype, device=device)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    product = 2 * side**3 / _best(lambda: a @ b, device, rounds)
    return max(
        product, 2 * 9 * 768**2 * 70**2 / _best(lambda: F.conv2d(x, kernel, padding=1), device, rounds)
    )


def _best(work: Callable[[], object], device: str, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _version(name: str) -> str | None:
    from importlib.metadata import version

    return version(name) if importlib.util.find_spec(name) else None


def peak_memory_gib() -> float:
    """Return the largest resident memory of this process so far in GiB.

    Linux hands the peak of getrusage on from a parent to its children; that of /proc begins with the program.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
