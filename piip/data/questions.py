"""Files of questions about images, in the forms of POPE and of TextVQA; nothing here needs a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from piip.data.json_stream import stream_entries
from piip.errors import DataError

Form = Literal["pope", "textvqa"]

FEWEST_ANSWERS = 4
"""With fewer answers of people, not even an answer on which all agree would score 1."""

_LABELS = {"yes": True, "no": False}
_PEEK = 1 << 16  # bytes by which a file of questions is recognised
_MARKS = ((b'"image"', b'"text"', b'"label"'), (b'"image', b'"question"', b'"answers"'))


@dataclass(frozen=True)
class AskedOfImage:
    """An entry of a file of questions.

    Attributes:
        id: Its number or name.
        image: The image file, as the entry names it.
        text: The question.
        truth: Whether yes is true (POPE), or what people answered (TextVQA).
    """

    id: int | str
    image: Path
    text: str
    truth: bool | tuple[str, ...]


def holds_questions(path: Path) -> bool:
    """Return whether a file holds questions of one of the forms, by its beginning."""
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK)
    except OSError:
        return False
    return b'"conversations"' not in head and any(all(mark in head for mark in marks) for marks in _MARKS)


def read_records(path: Path) -> list[Any]:
    """Return the entries of a file, at least one: one a line, a list, or a list under ``data``.

    Raises:
        DataError: The file is missing, no json, or holds nothing.
    """
    if not path.is_file():
        raise DataError(f"The questions {path} cannot be read, as there is no such file; check the path.")
    records = [entry.value for entry in stream_entries(path)]
    if len(records) == 1 and isinstance(records[0], dict) and "data" in records[0]:
        records = records[0]["data"]
    if not isinstance(records, list) or not records:
        raise DataError(
            f"{path} holds no questions; give a list of them, or an object with one under 'data'."
        )
    return records


def form_of(records: Sequence[Any]) -> Form:
    """Return the form of the entries of a file, by the first one."""
    return "pope" if isinstance(records[0], dict) and "label" in records[0] else "textvqa"


def parse_question(form: Form, record: Any, number: int) -> AskedOfImage:
    """Return what an entry says.

    Args:
        form: Of the file.
        record: The entry.
        number: Its place, from 1.

    Raises:
        DataError: It is incomplete; the message is what is missing, without naming the file.
    """
    try:
        return _parsed(form, record, number)
    except (KeyError, TypeError, ValueError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise DataError(f"is incomplete{reason}; it needs {_FIELDS[form]}.") from error


def _parsed(form: Form, record: Any, number: int) -> AskedOfImage:
    name = record["image"] if "image" in record else f"{record['image_id']}.jpg"
    identity, image = record.get("question_id", number), Path(_text(name))
    if form == "pope":
        return AskedOfImage(
            identity, image, _text(record["text"]), _LABELS[str(record["label"]).strip().lower()]
        )
    answers = tuple(str(a["answer"] if isinstance(a, dict) else a) for a in record["answers"])
    if len(answers) < FEWEST_ANSWERS or isinstance(record["answers"], str):
        raise ValueError(f"fewer than {FEWEST_ANSWERS} answers")
    return AskedOfImage(identity, image, _text(record["question"]), answers)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


_FIELDS: dict[Form, str] = {
    "pope": "'image', 'text' and 'label', yes or no (POPE)",
    "textvqa": "'image', 'question' and 'answers', ten as a rule (TextVQA), "
    "or 'image', 'text' and 'label' (POPE)",
}
