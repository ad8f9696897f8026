"""What ``piip predict`` and ``piip eval`` do with a PIIP-LLaVA."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.cli.console import console, percent, table, tracked
from piip.errors import ConfigError, require
from piip.files import cannot_write, write_json

if TYPE_CHECKING:
    from piip.llava import Answerer

INSTRUCTION = "Answer the question using a single word or phrase."
"""What LLaVA models were trained to be told, and are told by the published evaluations of POPE and TextVQA."""
SHORT = 16
"""Tokens that are enough for a word or phrase."""


def load_answerer(model: str, device: str, bits: int | None = None) -> "Answerer":
    """Load a PIIP-LLaVA without the bars and notes of transformers.

    Raises:
        CheckpointError: There is none, or it is damaged.
        ConfigError: The device is not there.
        MissingExtraError: transformers is not installed, or bitsandbytes, if it is needed.
    """
    notes = require("transformers", "llava", "PIIP-LLaVA").utils.logging
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    require("jinja2", "llava", "PIIP-LLaVA")
    from piip.llava import Answerer

    return Answerer.load(model, device, bits=bits)


def refuse(model: str, kind: str, options: dict[str, Any]) -> None:
    """Complain about options that mean nothing for a kind of model.

    Args:
        model: Its name.
        kind: What it is, in words.
        options: Values by name; those that are empty were not given.

    Raises:
        ConfigError: One was given.
    """
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(f"{model} is {kind}, for which --{given[0]} means nothing; leave it out.")


def answer_about(
    files: list[Path], model: str, prompt: str | None, tokens: int, device: str, out: Path
) -> Path:
    """Ask about each image on its own, print the answers and write them to predictions.json.

    Raises:
        ConfigError: There is no prompt.
        DataError: An image cannot be read.
    """
    if not prompt:
        raise ConfigError(
            f'{model} is a PIIP-LLaVA, which answers questions; add one: --prompt "What is in the picture?".'
        )
    from piip.data.images import open_picture

    answerer = load_answerer(model, device)
    answers = []
    for number, path in enumerate(files):
        picture = open_picture(path)
        answer = answerer.answer(picture, prompt, tokens)
        size = {"height": picture.height, "width": picture.width}
        answers.append({"id": number, "file_name": str(path)} | size | {"prompt": prompt, "answer": answer})
        console().print(f"{path}: {answer}", markup=False, emoji=False)
    write_json(out / "predictions.json", {"images": answers}, indent=None)
    return out


def evaluate_answers(
    model: str, data: Path, images: Path | None, device: str, out: Path | None, **settings: Any
) -> dict[str, Any]:
    """Ask the questions of a file, print the scores, and write scores and answers.

    Args:
        model: The folder of a PIIP-LLaVA.
        data: The questions, see `piip.llava.questions.read_questions`.
        images: Where the names of images begin.
        device: Where the model runs.
        out: Where the scores go; the answers go beside them.
        settings: ``instruction``, ``max_new_tokens`` and ``batch_size``, as `answer_questions` takes them.

    Raises:
        DataError: The questions or an image cannot be read.
        PiipError: The results cannot be written.
    """
    require("transformers", "llava", "PIIP-LLaVA")
    from piip.llava.questions import answer_questions, read_questions, record_of, score

    form, questions = read_questions(data, images)
    target = out or (Path(model) if Path(model).is_dir() else Path()) / f"eval_{data.stem}.json"
    _require_writable(target)  # before the work, not after it
    answerer = load_answerer(model, device)
    asked = answer_questions(answerer, questions, **settings)
    answers = list(tracked(asked, len(questions), "answering"))
    scores = score(form, questions, answers)
    records = [record_of(question, answer) for question, answer in zip(questions, answers, strict=True)]
    write_json(target.with_name(f"{target.stem}_answers.json"), records)
    write_json(target, {"data": str(data), "form": form} | settings | {"scores": scores})
    rows = [[name, percent(value)] for name, value in scores.items() if name != "questions"]
    table(f"{model} on {len(questions)} questions of {data} ({form})", ["metric", "%"], rows)
    console().print(f"answers and scores: {target}", markup=False, emoji=False)
    return scores


def _require_writable(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    if not os.access(target.parent, os.W_OK):
        raise cannot_write(target, PermissionError(13, "Permission denied"))
