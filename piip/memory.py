"""Memory between one tensor and the next, on CPUs.

torch takes a CPU tensor's memory from the C library and gives it back with the last reference. glibc hands large
blocks straight back to Linux, which must then clear every page again before the next tensor gets it: a training
step of PIIP-TSB spends a third of its time on that (docs/speed.md). On GPUs torch keeps freed memory by itself.
"""

import ctypes
import os
import sys
from typing import Literal

from piip.errors import ConfigError

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_SETTINGS = {
    "all": {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER},
    # What glibc's own, adaptive thresholds arrive at once a program has freed a block of 32 MiB.
    "some": {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20},
    "none": {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 256 << 10, _MMAP_THRESHOLD: 256 << 10},
}


def keep_freed_memory(how_much: Literal["all", "some", "none"] = "all") -> bool:
    """Let this process keep the memory of freed CPU tensors for the next ones; the command line does.

    Settings of the user's own (``MALLOC_TRIM_THRESHOLD_`` and others in the environment) are left alone.

    Args:
        how_much: "all" is fastest, and the process stays as large as it has ever been; "some" is what glibc does by
            itself; "none" is slowest, and the process is never larger than what it needs.

    Raises:
        ConfigError: ``how_much`` is none of these.

    Returns:
        Whether this was possible: it is with glibc, on Linux.
    """
    if how_much not in _SETTINGS:
        raise ConfigError(f"how_much is {how_much!r}; give one of {', '.join(_SETTINGS)}.")
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    done = [library.mallopt(*setting) for setting in _SETTINGS[how_much].items()]
    if how_much != "all":
        library.malloc_trim(0)
    return all(done)
