"""Conversations about images in LLaVA's form: a json list, and a folder of images."""

import json
import mmap
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from piip.data.conversation_layout import TRIED, image_folder
from piip.data.json_stream import stream_entries
from piip.errors import DataError

IMAGE_MARK = "<image>"
"""Stands in a question where an image is meant."""

Role = Literal["user", "assistant"]

_ROLES: dict[Any, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says.

    Attributes:
        role: Who says it.
        text: With `IMAGE_MARK` for every image.
    """

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers in turn, beginning with a question and ending with an answer.

    Attributes:
        name: The sample's id, empty where it has none.
        images: Files relative to the folder of images, in the order of their marks.
        turns: What is said.
    """

    name: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]

    @property
    def words(self) -> int:
        """Number of words of all turns, marks of images left out."""
        return sum(len(turn.text.replace(IMAGE_MARK, " ").split()) for turn in self.turns)


def parse_conversation(value: Any) -> Conversation:
    """Return what an entry of the json says.

    An answer before the first question and a last question without an answer are left out, as nothing can be
    learnt from them.

    Args:
        value: ``{"id", "image": file or list of files or absent, "conversations": [{"from", "value"}, ...]}``.

    Raises:
        DataError: It is not such a thing; the message is what is wrong, without naming the sample.
    """
    if not isinstance(value, dict) or not isinstance(value.get("conversations"), list):
        raise DataError("it has no list of conversations")
    images = value.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(name, str) and name for name in images):
        raise DataError("its image is neither a file name nor a list of them")
    turns = [_parse_turn(turn) for turn in value["conversations"]]
    if turns and turns[0].role == "assistant" and IMAGE_MARK not in turns[0].text:
        turns = turns[1:]
    _check_order(turns)
    if turns and turns[-1].role == "user":
        turns = turns[:-1]
    name = value.get("id")
    conversation = Conversation("" if name is None else str(name), tuple(images), tuple(turns))
    _check(conversation)
    return conversation


def _parse_turn(value: Any) -> Turn:
    if not isinstance(value, dict) or not isinstance(value.get("value"), str):
        raise DataError("a turn of it has no text in 'value'")
    sender = value.get("from")
    if not isinstance(sender, str) or sender not in _ROLES:
        raise DataError(f"a turn of it is from {sender!r}, neither human nor gpt")
    return Turn(_ROLES[sender], value["value"])


def _check_order(turns: Sequence[Turn]) -> None:
    for index, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[index % 2]:
            raise DataError(
                f"its turns are out of order at {turn.text[:40]!r}; questions and answers alternate"
            )


def _check(conversation: Conversation) -> None:
    if not conversation.turns:
        raise DataError("it has no question with an answer")
    if any(IMAGE_MARK in turn.text for turn in conversation.turns[1::2]):
        raise DataError(f"an answer of it contains {IMAGE_MARK}")
    marks = sum(turn.text.count(IMAGE_MARK) for turn in conversation.turns)
    if marks != len(conversation.images):
        raise DataError(f"it has {marks} {IMAGE_MARK} for {len(conversation.images)} images")


class ConversationFile:
    """The conversations of a file; only where each of them begins is kept in memory.

    Sixteen bytes and a few numbers a sample, however long the conversations are: what is asked for is read from
    the file again, whose pages the loader's processes share.

    Args:
        path: A json list of samples, or a file of one sample a line.
        images: Folder of the images; by default found beside the file, see `find_image_folder`.

    Attributes:
        path: The file.
        folder: Folder of the images.
        words: ``(N,)`` int32, words of every conversation.
        image_counts: ``(N,)`` int32, images of every conversation.

    Raises:
        DataError: The file is no such list, a sample is none, or no image is where it should be.
    """

    def __init__(self, path: str | Path, images: str | Path | None = None) -> None:
        self.path = Path(path)
        rows = array("q")  # a list of tuples would take ten times the memory
        first_images: list[str] = []
        for number, entry in enumerate(stream_entries(self.path)):
            conversation = self._parsed(number, entry.value)
            rows.extend((entry.start, entry.length, conversation.words, len(conversation.images)))
            if len(first_images) < TRIED:
                first_images += conversation.images
        if not rows:
            raise DataError(f"{self.path} has no sample; give a json list of conversations.")
        table = np.frombuffer(rows, np.int64).reshape(-1, 4)
        self._starts, self._lengths = table[:, 0].copy(), table[:, 1].astype(np.int32)
        self.words: NDArray[np.int32] = table[:, 2].astype(np.int32)
        self.image_counts: NDArray[np.int32] = table[:, 3].astype(np.int32)
        folder = image_folder(self.path, first_images, images)
        if folder is None:
            raise DataError(
                f"{first_images[0]} of {self.path} is not beside it; give the folder of the images."
            )
        self.folder = folder
        self._bytes: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Conversation:
        """Return one conversation.

        Raises:
            IndexError: There is no such sample.
            DataError: The file has changed since it was opened.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start = int(self._starts[index])
        return self._parsed(index, self._loads(self._map()[start : start + int(self._lengths[index])]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}  # another process opens the file itself

    def _map(self) -> mmap.mmap:
        if self._bytes is None:
            with self.path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._bytes

    def _loads(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{self.path} has changed while it was in use; start again.") from error

    def _parsed(self, number: int, value: Any) -> Conversation:
        try:
            return parse_conversation(value)
        except DataError as error:
            raise DataError(
                f"{self.path}, {sample_name(number, value)}: {error}; mend or remove it "
                "(piip check-data --task multimodal lists all such samples)."
            ) from error


def sample_name(number: int, value: Any) -> str:
    """Return what a sample is called in messages: its number, from 0, and its id where it has one."""
    name = value.get("id") if isinstance(value, dict) else None
    return f"sample {number}" if name is None else f"sample {number} (id {name})"
