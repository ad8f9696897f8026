"""Finding out what is wrong with conversations about images before a minute of training is spent."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from piip.data.check_labels import compare_splits, in_threads
from piip.data.check_questions import check_questions
from piip.data.conversation_layout import find_conversations, find_questions, image_folder
from piip.data.conversations import Conversation, parse_conversation, sample_name
from piip.data.images import ImageFileError, read_size
from piip.data.json_stream import stream_entries
from piip.data.report import CheckReport, ConversationStatistics, Findings, QuestionStatistics
from piip.errors import DataError

_LONG = 1500  # words: about the 2048 tokens that the released models were trained with


def check_multimodal(
    path: str | Path, *, images: str | Path | None = None, read_images: bool = True
) -> CheckReport:
    """Check conversations about images and measure their lengths; check questions about images, too.

    Args:
        path: A json of LLaVA's form, a file of questions as POPE or TextVQA have them, or a folder of such files.
        images: Folder of the images; by default found beside each file.
        read_images: Decode every image to find truncated ones; otherwise only headers are read.

    Raises:
        DataError: There are no conversations, or ``images`` is no folder.
    """
    questions = find_questions(path)
    files = {} if questions and Path(path).is_file() else find_conversations(path)
    findings = Findings()
    statistics: dict[str, ConversationStatistics | QuestionStatistics] = {}
    shown = {}
    for split, file in files.items():
        check = _FileCheck(split, findings)
        try:
            check.read(file)
        except DataError as error:
            findings.add("error", split, "files that cannot be used", error)
        statistics[split] = check.statistics()
        folder = image_folder(file, check.images, images) or file.parent
        shown[split] = [folder / name for name in check.images]
        in_threads(partial(_check_image, split, findings, read_images), shown[split])
    for split, file in questions.items():
        statistics[split], asked_about = check_questions(split, file, images, findings)
        in_threads(partial(_check_image, split, findings, read_images), asked_about)
    compare_splits(findings, shown)  # questions may well be about images that are talked about
    return CheckReport("conversations", Path(path), statistics, findings.problems())


def _check_image(split: str, findings: Findings, read_images: bool, path: Path) -> None:
    try:
        read_size(path, decode=read_images)
    except ImageFileError as error:
        findings.add("error", split, "missing or unreadable images", error)


class _FileCheck:
    """What is found in one file.

    Args:
        split: What the file is called.
        findings: Collects problems.

    Attributes:
        images: Every image once, in order.
    """

    def __init__(self, split: str, findings: Findings) -> None:
        self.split = split
        self.images: dict[str, None] = {}
        self._findings = findings
        self._names: set[str] = set()
        self._words: list[int] = []
        self._answers = self._text_only = self._several = 0

    def read(self, file: Path) -> None:
        """Read a whole file.

        Raises:
            DataError: It is no json list.
        """
        for number, entry in enumerate(stream_entries(file)):
            where = sample_name(number, entry.value)
            try:
                conversation = parse_conversation(entry.value)
            except DataError as error:
                self._add("error", "samples that cannot be used", f"{where}: {error}")
            else:
                self._count(conversation)
                self._look_at(conversation, entry.value, where)
        if not self._words:
            self._add("error", "no usable sample at all", file)

    def _add(self, severity: Any, what: str, where: object) -> None:
        self._findings.add(severity, self.split, what, where)

    def _count(self, conversation: Conversation) -> None:
        self.images.update(dict.fromkeys(conversation.images))
        self._words.append(conversation.words)
        self._answers += len(conversation.turns) // 2
        self._text_only += not conversation.images
        self._several += len(conversation.images) > 1

    def _look_at(self, conversation: Conversation, value: Any, where: str) -> None:
        """Report what training gets over, but is not as it should be."""
        name = conversation.name
        if name and name in self._names:
            self._add("warning", "ids used more than once", name)
        self._names.add(name)
        if any(not turn.text.strip() for turn in conversation.turns[1::2]):
            self._add("warning", "empty answers are learnt as silence", where)
        if any(not turn.text.strip() for turn in conversation.turns[::2]):
            self._add("warning", "empty questions", where)
        if len(conversation.turns) != len(value["conversations"]):
            self._add("warning", "answers without a question and questions without one are left out", where)
        if conversation.words > _LONG:
            self._add("note", f"more than {_LONG} words may be cut", f"{where}: {conversation.words} words")

    def statistics(self) -> ConversationStatistics:
        """Count samples and measure lengths."""
        return ConversationStatistics(
            samples=len(self._words),
            text_only=self._text_only,
            several_images=self._several,
            images=len(self.images),
            answers=self._answers,
            quantiles=_quantiles(self._words),
            lengths=_histogram(self._words),
        )


def _quantiles(words: Iterable[int]) -> dict[str, int]:
    values = np.array([*words] or [0])
    shares = {"shortest": 0.0, "half below": 0.5, "90% below": 0.9, "99% below": 0.99, "longest": 1.0}
    return {name: int(np.quantile(values, share)) for name, share in shares.items()}


def _histogram(words: Iterable[int]) -> dict[str, int]:
    """Return how many lengths are within each doubling."""
    powers, counts = np.unique([max(value, 1).bit_length() for value in words], return_counts=True)
    found = dict(zip(powers.tolist(), counts.tolist(), strict=True))
    between = range(min(found), max(found) + 1) if found else ()
    return {f"{2 ** (power - 1)} to {2**power - 1} words": found.get(power, 0) for power in between}
