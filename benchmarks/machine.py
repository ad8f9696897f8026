"""Where and with what something was measured."""

import datetime
import importlib.util
import os
import platform
import subprocess
from pathlib import Path

import timm
import torch

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


def _version(name: str) -> str | None:
    from importlib.metadata import version

    return version(name) if importlib.util.find_spec(name) else None
