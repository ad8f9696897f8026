"""Writing files so that nothing half-written is ever left under its final name."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piip.errors import PiipError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it only if the block ends without an error.

    Args:
        path: Final name; its folder is created when missing.

    Raises:
        PiipError: The folder or the file cannot be written (no space, no permission).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only the owner can read
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def cannot_write(path: Path, error: OSError) -> PiipError:
    """Return the error for a file that could not be written, in words that say what to do."""
    return PiipError(
        f"Cannot write {path}: {error.strerror or error}. Free some space or choose a folder you can write to."
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
