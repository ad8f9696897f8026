"""An answer drawn beside the image that it is about."""

from pathlib import Path
from typing import Any

from piip.data.images import open_picture
from piip.errors import require
from piip.files import atomic_write
from piip.llava.explaining import wrap
from piip.llava.questions import Question

_INK, _RIGHT, _WRONG = "#1c2430", "#2c7a4b", "#b3352f"
_LETTERS = 44  # in a line


def draw_answer(question: Question, answer: str, path: Path) -> None:
    """Draw an image, what was asked, what was answered and what is true.

    Args:
        question: What was asked.
        answer: What was answered.
        path: The new picture.

    Raises:
        DataError: The image cannot be read.
        PiipError: The picture cannot be written.
    """
    matplotlib = require("matplotlib.figure", "llava", "Drawing answers")
    drawn = matplotlib.Figure(figsize=(9, 4), layout="constrained")
    shown, said = drawn.subplots(1, 2, width_ratios=(1, 1))
    shown.imshow(open_picture(question.image))
    for axes in (shown, said):
        axes.axis("off")
    right = question.right(answer) > 0.5
    truth = question.truth
    true = ("no", "yes")[truth] if isinstance(truth, bool) else _most_given(truth)
    place = 0.98
    for heading, text, colour in (
        ("asked", question.text, _INK),
        ("answered", answer.strip() or "(nothing)", _RIGHT if right else _WRONG),
        ("true", true, _INK),
    ):
        place = _write(said, place, heading, text, colour)
    with atomic_write(path) as temporary:
        drawn.savefig(temporary, dpi=110)


def _write(axes: Any, place: float, heading: str, text: str, colour: str) -> float:
    """Write a paragraph and return where the next one begins."""
    lines = wrap(text, _LETTERS, max_lines=6) or [""]
    options = {"transform": axes.transAxes, "va": "top", "parse_math": False}
    axes.text(0, place, heading, color="#6a7380", fontsize=9, **options)
    axes.text(0, place - 0.055, "\n".join(lines), color=colour, fontsize=12, **options)
    return place - 0.13 - 0.062 * len(lines)


def _most_given(answers: tuple[str, ...]) -> str:
    return max(answers, key=answers.count)
