"""Freed memory that stays with the process."""

import os
import subprocess
import sys

import pytest

import piip
from piip.errors import ConfigError

PROGRAM = """
import resource, torch, piip
possible = piip.keep_freed_memory("{how_much}")
for turn in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 << 20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(possible, faults)
"""


def run(how_much: str, **environment: str) -> tuple[str, int]:
    """Return what the program prints, with settings of the C library's allocator."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(how_much=how_much)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    possible, faults = done.stdout.split()
    return possible, int(faults)


def needs_glibc() -> None:
    """Skip where the C library is another one."""
    if sys.platform != "linux" or not hasattr(__import__("ctypes").CDLL(None), "gnu_get_libc_version"):
        pytest.skip("needs Linux with glibc")


def test_the_next_tensor_gets_the_memory_of_a_freed_one() -> None:
    """Without new pages; given back, it needs thousands (or a few large ones)."""
    needs_glibc()
    possible, faults = run("all")
    assert possible == "True"
    assert faults < 10 < min(run("some")[1], run("none")[1])


def test_settings_of_the_users_own_stay() -> None:
    """Who tunes the allocator by the environment is not overruled."""
    needs_glibc()
    assert run("all", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


def test_name_is_public() -> None:
    """Library users, who do not come by the command line, can ask for it."""
    assert "keep_freed_memory" in piip.__all__


def test_unknown_amounts_are_refused() -> None:
    """With the amounts that there are."""
    with pytest.raises(ConfigError, match="one of all, some, none"):
        piip.keep_freed_memory("most")  # type: ignore[arg-type]
