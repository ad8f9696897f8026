"""Questions about images in files, in the forms of POPE and of TextVQA, and what came of asking them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piip.data.questions import FEWEST_ANSWERS, AskedOfImage, Form, form_of, parse_question, read_records
from piip.errors import ConfigError, DataError
from piip.llava.answering import MAX_NEW_TOKENS, Answerer, Turn, as_pictures
from piip.llava.scoring import exact_match, pope_scores, says_yes, soft_accuracy, vqa_scores

_NAMED = 3  # questions in a warning


class Question(AskedOfImage):
    """A question about an image file that is there, and how right an answer to it is."""

    def right(self, answer: str) -> float:
        """Return how right an answer is, from 0 to 1; of an only true answer, all or nothing."""
        if isinstance(self.truth, bool):
            return float(says_yes(answer) == self.truth)
        if len(self.truth) < FEWEST_ANSWERS:
            return float(exact_match(answer, self.truth))
        return soft_accuracy(answer, self.truth)


@dataclass(frozen=True)
class LeftOut:
    """What a question gets in place of an answer if it cannot be asked.

    Attributes:
        reason: What is wrong with it, and the mend.
    """

    reason: str


def read_questions(path: str | Path, images: str | Path | None = None) -> tuple[Form, list[Question]]:
    """Return the form and the questions of a file.

    The file has one JSON object a line, a JSON list, or an object with the list under ``data``, whatever its name.
    Every object has ``question_id`` (default: its place, from 1) and

    - in POPE's form ``image``, a file name, ``text``, the question, and ``label``, ``yes`` or ``no``;
    - in TextVQA's form ``image``, or ``image_id`` without ``.jpg``, ``question``, and ``answers``, a list of texts
      or of objects with an ``answer``.

    Args:
        path: The file.
        images: Where the names of images begin; the folder of the file by default.

    Raises:
        DataError: The file cannot be read, is of neither form, or an image is missing.
    """
    path = Path(path)
    records = read_records(path)
    form = form_of(records)
    folder = path.parent if images is None else Path(images)
    questions = []
    for number, record in enumerate(records, start=1):
        try:
            asked = parse_question(form, record, number)
        except DataError as error:
            raise DataError(f"Question {number} of {path} {error}") from error
        questions.append(Question(asked.id, folder / asked.image, asked.text, asked.truth))
    missing = [question.image for question in questions if not question.image.is_file()]
    if missing:
        raise DataError(
            f"{path} asks about {missing[0]}, which does not exist ({len(missing)} of {len(questions)} images are "
            "missing); say where the names of images begin with --images FOLDER."
        )
    return form, questions


def answer_questions(
    answerer: Answerer,
    questions: Sequence[Question],
    instruction: str = "",
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 1,
) -> Iterator[str | LeftOut]:
    """Yield the answer to each question, as soon as it is there.

    A question whose image cannot be read, or which is too long for the model, is left out; it ends nothing.

    Args:
        answerer: Who is asked.
        questions: The questions.
        instruction: A line after every question, such as how short the answer should be.
        max_new_tokens: Where an answer is cut off.
        batch_size: Questions answered at once.

    Raises:
        ConfigError: ``batch_size`` or ``max_new_tokens`` is not above 0.
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; give a number above 0.")
    for start in range(0, len(questions), batch_size):
        yield from _answer_group(answerer, questions[start : start + batch_size], instruction, max_new_tokens)


def _answer_group(
    answerer: Answerer, group: Sequence[Question], instruction: str, max_new_tokens: int
) -> list[str | LeftOut]:
    """Return the answers to questions asked at once, or one by one where that cannot be done."""
    try:
        return [*answerer.answer_all([_asked(question, instruction) for question in group], max_new_tokens)]
    except (DataError, ConfigError) as error:
        if len(group) == 1:
            return [LeftOut(str(error))]
    alone = (_answer_group(answerer, [question], instruction, max_new_tokens) for question in group)
    return [answer for (answer,) in alone]


def _asked(question: Question, instruction: str) -> list[Turn]:
    text = "\n".join(filter(None, [question.text, instruction]))
    return [Turn("user", text, as_pictures(question.image))]


def score(form: Form, questions: Sequence[Question], answers: Sequence[str | LeftOut]) -> dict[str, float]:
    """Return the scores of all answers, `pope_scores` or `vqa_scores`; a warning names questions left out.

    Raises:
        DataError: Every question was left out, or there is none.
    """
    pairs: Any = []
    without: list[tuple[Question, LeftOut]] = []
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, LeftOut):
            without.append((question, answer))
        else:
            pairs.append((answer, question.truth))
    if without and not pairs:
        raise DataError(f"None of {len(without)} questions can be asked. {without[0][1].reason}")
    if without:
        named = ", ".join(f"{question.id} ({out.reason.rstrip('.')})" for question, out in without[:_NAMED])
        more = f" and {len(without) - _NAMED} more" if without[_NAMED:] else ""
        warnings.warn(
            f"{len(without)} of {len(questions)} questions are left out of the scores: {named}{more}.",
            stacklevel=2,
        )
    return pope_scores(pairs) if form == "pope" else vqa_scores(pairs)


def record_of(question: Question, answer: str | LeftOut) -> dict[str, Any]:
    """Return a question, its answer, and how right that is (0 to 1), or why it was left out, JSON-ready."""
    asked = {"question_id": question.id, "image": str(question.image), "question": question.text}
    if isinstance(answer, LeftOut):
        return asked | {"left_out": answer.reason}
    return asked | {"answer": answer, "score": question.right(answer)}
