"""What ``piip predict`` and ``piip eval`` do with a PIIP-LLaVA."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.cli.console import console, percent, table, tracked
from piip.errors import ConfigError, require
from piip.files import cannot_write, write_json
from piip.train.recipe import TrainRecipe

if TYPE_CHECKING:
    from piip.llava import Answerer


def silence_transformers() -> None:
    """Turn off the bars and notes of transformers: what matters is said by our own.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    notes = require("transformers", "llava", "PIIP-LLaVA").utils.logging
    notes.set_verbosity_error()
    notes.disable_progress_bar()


def load_answerer(model: str, device: str, bits: int | None = None) -> "Answerer":
    """Load a PIIP-LLaVA without the bars and notes of transformers.

    Raises:
        CheckpointError: There is none, or it is damaged.
        ConfigError: The device is not there.
        MissingExtraError: transformers is not installed, or bitsandbytes, if it is needed.
    """
    silence_transformers()
    require("jinja2", "llava", "PIIP-LLaVA")
    from piip.llava import Answerer

    return Answerer.load(model, device, bits=bits)


def refuse(model: str, kind: str, options: dict[str, Any]) -> None:
    """Complain about options that mean nothing for a kind of model or file.

    Args:
        model: Its name.
        kind: What it is, in words.
        options: Values by name; those that are None or False were not given.

    Raises:
        ConfigError: One was given.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{model} is {kind}, for which --{given[0]} means nothing; leave it out.")


def answer_about(
    files: list[Path],
    targets: list[Path],
    model: str,
    prompt: str | None,
    tokens: int,
    device: str,
    out: Path,
) -> Path:
    """Ask about each image on its own, print the answers and write them to predictions.json.

    Args:
        files: The images.
        targets: Where to draw where each answer came from; none to leave that out.
        model: A run, the folder of a PIIP-LLaVA, or its name on the Hub.
        prompt: The question.
        tokens: Where an answer is cut off.
        device: Where the model runs.
        out: Folder of predictions.json.

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
        drawn = ""
        if targets and answer:
            answerer.explain(picture, prompt, answer).plot(targets[number])
            drawn = f" -> {targets[number]}"
        elif targets:
            drawn = "(no answer, so that there is nothing to draw)"
        size = {"height": picture.height, "width": picture.width}
        answers.append({"id": number, "file_name": str(path)} | size | {"prompt": prompt, "answer": answer})
        console().print(f"{path}: {answer}{drawn}", markup=False, emoji=False)
    write_json(out / "predictions.json", {"images": answers}, indent=None)
    return out


def evaluate_answers(
    model: str,
    data: Path | None,
    images: Path | None,
    device: str,
    out: Path | None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Ask the questions of a file, or read its conversations, print the scores and write them.

    Args:
        model: The folder of a PIIP-LLaVA, or a run.
        data: Questions, see `piip.llava.questions.read_questions`, or conversations; those of the run by default.
        images: Where the names of images begin.
        device: Where the model runs.
        out: Where the scores go; answers go beside them.
        given: ``instruction``, ``max_new_tokens`` and ``batch_size``, those that are not to be as in the run.

    Raises:
        ConfigError: No data is named, and the model is no run of training; or an option has no effect on the data.
        DataError: The data or an image cannot be read.
        PiipError: The results cannot be written.
    """
    require("transformers", "llava", "PIIP-LLaVA")
    from piip.data.conversation_layout import find_file, holds_conversations
    from piip.train.folder import RunFolder

    run = RunFolder(Path(model))
    recipe = run.recipe() if run.config.is_file() else TrainRecipe(task="multimodal")
    if data is None:
        if not recipe.data.folder:
            raise ConfigError(
                f"{model} is a PIIP-LLaVA; name a file of questions with --data questions.jsonl."
            )
        data = find_file(recipe.data.folder, recipe.data.val)
        images = images or _images_of(recipe)
    target = out or (Path(model) if Path(model).is_dir() else Path()) / f"eval_{data.stem}.json"
    conversations = holds_conversations(data)
    if conversations:
        refuse(str(data), "a file of conversations", {**given, "batch_size": None})
    _require_writable(target)  # before the work, not after it
    answerer = load_answerer(model, device)
    if conversations:
        scores, left_out = _read_conversations(answerer, data, images, recipe, given.get("batch_size", 1))
        settings: dict[str, Any] = {"form": "conversations"}
    else:
        defaults = {
            "instruction": recipe.language.instruction,
            "max_new_tokens": recipe.language.max_new_tokens,
            "batch_size": 1,
        }
        settings = defaults | given
        form, scores, records = _ask_questions(answerer, data, images, settings)
        settings = {"form": form} | settings
        left_out = sum("left_out" in record for record in records)
        write_json(target.with_name(f"{target.stem}_answers.json"), records)
    write_json(target, {"data": str(data)} | settings | {"left_out": left_out, "scores": scores})
    rows = [[name, _shown(name, value)] for name, value in scores.items()]
    table(f"{model} on {data} ({settings['form']})", ["metric", "value"], rows)
    console().print(f"scores: {target}", markup=False, emoji=False)
    return scores


def _ask_questions(
    answerer: "Answerer", data: Path, images: Path | None, settings: dict[str, Any]
) -> tuple[str, dict[str, float], list[dict[str, Any]]]:
    from piip.llava.questions import answer_questions, read_questions, record_of, score

    form, questions = read_questions(data, images)
    asked = answer_questions(answerer, questions, **settings)
    answers = list(tracked(asked, len(questions), "answering"))
    records = [record_of(question, answer) for question, answer in zip(questions, answers, strict=True)]
    return form, score(form, questions, answers), records


def _read_conversations(
    answerer: "Answerer", data: Path, images: Path | None, recipe: TrainRecipe, batch_size: int
) -> tuple[dict[str, float], int]:
    """Return the scores of conversations, and how many were left out."""
    from piip.data.conversations import ConversationFile
    from piip.llava.answers import PLAIN_TEMPLATE
    from piip.llava.dataset import ConversationCollator, ConversationDataset
    from piip.llava.likelihood import answer_scores, count_conversations

    settings, processor = recipe.language, answerer.processor
    template = PLAIN_TEMPLATE if settings.captions else None
    found = ConversationFile(data, images)
    dataset = ConversationDataset(found, processor, settings.max_length, template, replace=False)
    collate = ConversationCollator(processor.tokenizer.pad_token_id)
    counted = count_conversations(answerer.model, dataset, collate, batch_size)
    scores = answer_scores(tracked(counted, -(-len(dataset) // batch_size), "reading"))
    dataset.warn_of_losses()
    return scores, dataset.unusable


def _images_of(recipe: TrainRecipe) -> Path:
    """Return where a run found the images of its questions: where those of its conversations are."""
    from piip.data.conversation_layout import find_file
    from piip.data.conversations import ConversationFile

    if recipe.data.images is not None:
        return Path(recipe.data.images)
    return ConversationFile(find_file(recipe.data.folder, recipe.data.train)).folder


def _shown(name: str, value: float) -> str:
    if name in ("questions", "tokens"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if name == "loss" else f"{percent(value)} %"


def _require_writable(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    if not os.access(target.parent, os.W_OK):
        raise cannot_write(target, PermissionError(13, "Permission denied"))
