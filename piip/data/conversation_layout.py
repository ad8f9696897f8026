"""Where files of conversations and their images are."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from piip.data.questions import holds_questions
from piip.errors import DataError

TRIED = 20
"""Images looked for in every place."""

_IMAGE_PLACES = (".", "images", "..", "../images")
_SHOWN = 8
_PEEK = 1 << 16  # bytes by which a file of conversations is recognised


def image_folder(path: Path, names: Iterable[str], given: str | Path | None = None) -> Path | None:
    """Return the folder of a file's images: the one given, or what `find_image_folder` finds.

    Raises:
        DataError: The one given does not exist.
    """
    if given is None:
        return find_image_folder(path, names)
    if not Path(given).is_dir():
        raise DataError(f"The folder of images {given} does not exist.")
    return Path(given)


def find_image_folder(path: Path, names: Iterable[str]) -> Path | None:
    """Return where the images of a file are, None where none of the first ones is anywhere.

    Looked at are the file's own folder, ``images`` in it, the folder above, and ``images`` in that; without any
    names of images, it is the file's own folder.
    """
    tried = list(islice(names, TRIED))
    for place in _IMAGE_PLACES:
        if not tried or any((path.parent / place / name).is_file() for name in tried):
            return path.parent / place
    return None


def has_conversations(path: Path) -> bool:
    """Return whether a file, or one in a folder, begins like conversations."""
    if not path.is_dir():
        return holds_conversations(path)
    return any(map(holds_conversations, _candidates(path)))


def find_conversations(path: str | Path) -> dict[str, Path]:
    """Return the files of conversations in a folder and the folders in it, by split.

    Args:
        path: A file, or a folder that holds some; other json files in it are left alone.

    Returns:
        Files by name without suffix.

    Raises:
        DataError: There is none.
    """
    path = Path(path)
    if not path.is_dir():
        return {path.stem: path}
    found = _named(path, holds_conversations)
    if not found:
        raise DataError(f"No conversations were found in {path}; give a json list of LLaVA's form.")
    return found


def find_questions(path: str | Path) -> dict[str, Path]:
    """Return the files of questions in a folder and the folders in it, or the one given; there may be none."""
    path = Path(path)
    if path.is_dir():
        return _named(path, holds_questions)
    return {path.stem: path} if holds_questions(path) else {}


def _named(folder: Path, fits: Callable[[Path], bool]) -> dict[str, Path]:
    return {str(file.relative_to(folder).with_suffix("")): file for file in _candidates(folder) if fits(file)}


def _candidates(folder: Path) -> list[Path]:
    return sorted(file for depth in ("*", "*/*") for file in folder.glob(f"{depth}.json*"))


def find_file(folder: str | Path, name: str) -> Path:
    """Return a file of conversations or questions by its name, with or without ``.json`` or ``.jsonl``.

    Raises:
        DataError: The folder or the file does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"The folder {folder} does not exist; check data.folder.")
    for suffix in ("", ".json", ".jsonl"):
        if (found := folder / f"{name}{suffix}").is_file():
            return found
    known = sorted(path.name for path in folder.glob("*.json*"))
    shown = f"it has {', '.join(known[:_SHOWN])}" if known else "it has no json file at all"
    raise DataError(f"{folder} has no file {name}.json or {name}.jsonl; {shown}.")


def holds_conversations(path: Path) -> bool:
    """Return whether a file holds conversations, by its beginning."""
    try:
        with path.open("rb") as file:
            return b'"conversations"' in file.read(_PEEK)
    except OSError:
        return False
