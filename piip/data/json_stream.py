"""Reading a long json list, or a file of json lines, one entry at a time."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from piip.errors import DataError

_CHUNK = 1 << 22  # bytes
_BLANKS = "\ufeff \t\r\n"
_LONGEST_TOKEN = 64  # characters of a word, a number or an escape that the end of a chunk may cut
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a file.

    Attributes:
        start: Its first byte.
        length: Its number of bytes.
        value: What it says.
    """

    start: int
    length: int
    value: Any


def stream_entries(path: str | Path) -> Iterator[Entry]:
    """Yield the entries of a json list or of json lines in order, with little more than one of them in memory.

    Args:
        path: A file in UTF-8.

    Raises:
        DataError: The file is missing, no json, cut off, or its outermost value is no list.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            yield from _entries(file)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give a json list of conversations.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable json list ({error}); write it again.") from error


def _entries(file: IO[bytes]) -> Iterator[Entry]:
    window = _Window(file)
    if not window.skip(_BLANKS):
        return
    listed = window.text[window.at] == "["
    if listed:
        window.advance(window.at + 1)
    while window.skip(_BLANKS + ","):
        if listed and window.text[window.at] == "]":
            return
        yield window.entry()
    if listed:
        raise ValueError("the list has no end")


class _Window:
    """The part of a file that is being read, as text.

    Args:
        file: In UTF-8.

    Attributes:
        text: The part.
        at: Position in it, in characters.
        place: The same position in the file, in bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.text, self.at, self.place = "", 0, 0
        self._complete = False
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def advance(self, to: int) -> None:
        """Go to a position of the text."""
        passed = self.text[self.at : to]
        self.place += len(passed) if passed.isascii() else len(passed.encode())
        self.at = to

    def skip(self, characters: str) -> bool:
        """Go to the next other character; False where there is none."""
        while True:
            end = self.at
            while end < len(self.text) and self.text[end] in characters:
                end += 1
            self.advance(end)
            if end < len(self.text):
                return True
            if self._complete:
                return False
            self._grow()

    def entry(self) -> Entry:
        """Return the value that begins here and go behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self._complete or self._is_hopeless(error):
                    raise ValueError(f"behind byte {self.place}: {error.msg}") from error
            else:
                if self._complete or end < len(self.text):  # a number could go on
                    start = self.place
                    self.advance(end)
                    return Entry(start, self.place - start, value)
            self._grow()

    def _grow(self) -> None:
        """Drop what was read and read on, doubling, so that a long value is not read over and over."""
        chunk = self._file.read(max(_CHUNK, len(self.text) - self.at))
        self._complete = not chunk
        self.text = self.text[self.at :] + self._decode(chunk, final=self._complete)
        self.at = 0

    def _is_hopeless(self, error: json.JSONDecodeError) -> bool:
        """Whether more text would not mend an error, which saves reading the rest of a long file."""
        return not error.msg.startswith("Unterminated") and error.pos < len(self.text) - _LONGEST_TOKEN
