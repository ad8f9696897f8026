"""What a check of a data set found: problems, statistics, and both as text."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_EXAMPLES = 3
_BAR = 24


@dataclass(frozen=True)
class Problem:
    """One kind of problem of one split.

    Attributes:
        severity: ``error`` stops or spoils training, ``warning`` costs quality, ``note`` is worth knowing.
        split: Split it was found in; several are joined by a plus sign.
        what: The problem, and what piip does about it.
        where: The first offences.
        count: Number of offences.
    """

    severity: Severity
    split: str
    what: str
    where: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class SplitStatistics:
    """Numbers of one split.

    Attributes:
        images: Images annotated.
        empty: Images without objects.
        boxes: Objects that are no crowds.
        crowds: Crowd annotations.
        outlined: Objects with a polygon or mask.
        classes: Objects by class name, in order of the category ids.
        sizes: Objects by COCO's area limits: small (below 32 x 32), medium, large (above 96 x 96).
        smallest: Width and height of the image with the fewest pixels.
        largest: Width and height of the image with the most pixels.
        busiest: Largest number of objects in one image.
    """

    images: int
    empty: int
    boxes: int
    crowds: int
    outlined: int
    classes: Mapping[str, int]
    sizes: Mapping[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    busiest: int

    def lines(self, split: str) -> list[str]:
        """Return the numbers as text with a bar chart of the classes."""
        extent = f"{self.smallest[0]} x {self.smallest[1]} to {self.largest[0]} x {self.largest[1]}"
        sizes = ", ".join(f"{count} {name}" for name, count in self.sizes.items())
        return [
            f"{split}: {self.images} images ({self.empty} empty) of {extent} pixels",
            f"  {self.boxes} objects ({sizes}), {self.outlined} with an outline, {self.crowds} crowds, "
            f"at most {self.busiest} in an image",
            *_bars(self.classes),
        ]


@dataclass(frozen=True)
class LabelStatistics:
    """Numbers of one split whose images have masks or classes.

    Attributes:
        images: Images.
        classes: Pixels or images by class name, in label order.
        unit: What is counted.
    """

    images: int
    classes: Mapping[str, int]
    unit: Literal["pixels", "images"]

    def lines(self, split: str) -> list[str]:
        """Return the numbers as text with a bar chart of the classes."""
        return [f"{split}: {self.images} images, {self.unit} by class", *_bars(self.classes)]


@dataclass(frozen=True)
class ConversationStatistics:
    """Numbers of one file of conversations.

    Attributes:
        samples: Conversations that can be used.
        text_only: Those without an image.
        several_images: Those with more than one.
        images: Different images.
        answers: Answers of all conversations.
        quantiles: Words of a conversation: the shortest, the longest, and what shares are shorter than.
        lengths: Conversations by their number of words.
    """

    samples: int
    text_only: int
    several_images: int
    images: int
    answers: int
    quantiles: Mapping[str, int]
    lengths: Mapping[str, int]

    def lines(self, split: str) -> list[str]:
        """Return the numbers as text with a bar chart of the lengths."""
        quantiles = ", ".join(f"{name} {words}" for name, words in self.quantiles.items())
        return [
            f"{split}: {self.samples} conversations ({self.text_only} without an image, {self.several_images} with "
            f"several), {self.answers} answers, {self.images} images",
            f"  words of a conversation: {quantiles}",
            *_bars(self.lengths),
        ]


@dataclass(frozen=True)
class QuestionStatistics:
    """Numbers of one file of questions.

    Attributes:
        form: What its entries are like.
        questions: Questions that can be asked.
        images: Different images.
    """

    form: Literal["pope", "textvqa"]
    questions: int
    images: int

    def lines(self, split: str) -> list[str]:
        """Return the numbers as text."""
        return [f"{split}: {self.questions} questions ({self.form}) about {self.images} images"]


@dataclass(frozen=True)
class CheckReport:
    """Result of checking a data set.

    Attributes:
        layout: Name of the layout that was recognised.
        folder: What was checked.
        splits: Statistics by split.
        problems: Worst first.
    """

    layout: str
    folder: Path
    splits: Mapping[str, SplitStatistics | LabelStatistics | ConversationStatistics | QuestionStatistics]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(problem.severity != "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts and lists."""
        return {**asdict(self), "folder": str(self.folder), "ok": self.ok}

    def lines(self) -> list[str]:
        """Return the report as plain text."""
        text = [f"{self.layout} data set in {self.folder}"]
        for split, statistics in self.splits.items():
            text += ["", *statistics.lines(split)]
        text += ["", *(_problem_line(problem) for problem in self.problems)]
        counts = {level: sum(p.severity == level for p in self.problems) for level in _ORDER}
        summary = ", ".join(
            f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items() if count
        )
        return [
            *text,
            "",
            f"{'Ready to train' if self.ok else 'Mend the errors first'}: {summary or 'no problems'}.",
        ]


class Findings:
    """Collects offences and groups those of the same kind."""

    def __init__(self) -> None:
        self._found: dict[tuple[Severity, str, str], list[str]] = defaultdict(list)
        self._counts: dict[tuple[Severity, str, str], int] = defaultdict(int)

    def add(self, severity: Severity, split: str, what: str, where: object, count: int = 1) -> None:
        """Add one offence; only the first few places are kept."""
        key = (severity, split, what)
        self._counts[key] += count
        if len(self._found[key]) < _EXAMPLES:
            self._found[key].append(str(where))

    def problems(self) -> tuple[Problem, ...]:
        """Return the kinds of problems, worst first."""
        items = sorted(self._found.items(), key=lambda item: _ORDER.index(item[0][0]))
        return tuple(Problem(*key, tuple(where), self._counts[key]) for key, where in items)


def _problem_line(problem: Problem) -> str:
    more = problem.count - len(problem.where)
    places = ", ".join(problem.where) + (f" and {more} more" if more > 0 else "")
    return f"{problem.severity:<8}{problem.split}: {problem.what} ({problem.count}): {places}"


def _bars(counts: Mapping[str, int]) -> list[str]:
    """Return a line with a bar for every class."""
    most = max(counts.values(), default=0)
    width = max((len(name) for name in counts), default=0)
    digits = max(7, len(str(most)))
    return [
        f"  {name:<{width}} {count:>{digits}} {'#' * round(_BAR * count / most) if most else ''}".rstrip()
        for name, count in counts.items()
    ]
