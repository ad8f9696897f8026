"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("piip", deadline=None, derandomize=True)  # no test is timed; every run is the same
settings.load_profile("piip")


def find_shared() -> Path | None:
    """Return the folder with the original's golden files, where this checkout has it beside it."""
    candidates = [Path(p) for p in [os.environ.get("PIIP_SHARED", "")] if p]
    candidates += [parent / "shared" for parent in Path(__file__).resolve().parents]
    return next((path for path in candidates if (path / "golden").is_dir()), None)


@pytest.fixture(scope="session")
def shared() -> Path:
    path = find_shared()
    if path is None:
        pytest.skip("the golden files of the original are not beside this checkout")
    return path


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
    torch.set_num_threads(1)
