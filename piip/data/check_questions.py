"""Finding out what is wrong with a file of questions before a model is asked."""

from pathlib import Path

from piip.data.conversation_layout import image_folder
from piip.data.questions import AskedOfImage, form_of, parse_question, read_records
from piip.data.report import Findings, QuestionStatistics
from piip.errors import DataError


def check_questions(
    split: str, file: Path, images: str | Path | None, findings: Findings
) -> tuple[QuestionStatistics, list[Path]]:
    """Report incomplete and empty questions of a file.

    Args:
        split: What the file is called.
        file: In the form of POPE or of TextVQA.
        images: Folder of the images; by default found beside the file.
        findings: Collects problems.

    Returns:
        What was counted, and every image once.

    Raises:
        DataError: ``images`` is no folder.
    """
    try:
        records = read_records(file)
    except DataError as error:
        findings.add("error", split, "files that cannot be used", error)
        records = []
    form, found = form_of(records) if records else "pope", []
    for number, record in enumerate(records, start=1):
        try:
            found.append(parse_question(form, record, number))
        except DataError as error:
            findings.add("error", split, "questions that cannot be asked", f"question {number} {error}")
        else:
            _look_at(found[-1], split, findings)
    names = list(dict.fromkeys(str(question.image) for question in found))
    folder = image_folder(file, names, images) or file.parent
    return QuestionStatistics(form, len(found), len(names)), [folder / name for name in names]


def _look_at(question: AskedOfImage, split: str, findings: Findings) -> None:
    """Report what is asked all the same, but is not as it should be."""
    if not question.text.strip():
        findings.add("warning", split, "empty questions", f"question {question.id}")
    if not isinstance(question.truth, bool) and not any(answer.strip() for answer in question.truth):
        findings.add("warning", split, "empty answers", f"question {question.id}")
