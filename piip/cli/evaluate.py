"""``piip eval``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.cli.console import percent, table
from piip.cli.llava import evaluate_answers, refuse
from piip.errors import ConfigError

if TYPE_CHECKING:
    from piip.data.settings import AugmentedTest


def evaluate(
    model: str,
    data: Path | None = None,
    split: str | None = None,
    max_detections: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    images: Path | None = None,
    instruction: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a trained model on a data set: overall, by class and, for detectors, by object size.

    The data of a PIIP-LLaVA is a file of questions: one JSON object a line with image, text and label (yes or no),
    as POPE has them, or a JSON list of objects with image, question and answers (ten texts), as TextVQA has them.
    Scores and answers are written. Of a file of conversations, the loss of their answers is measured.

    Args:
        model: A run, or the folder of a saved model.
        data: The data set; that of the run by default. Of a PIIP-LLaVA, the file of questions or conversations.
        split: The split; the run's validation split by default.
        max_detections: Detections per image that count; the run's setting, or 100.
        scales: Look at each image at these factors of its scale, such as 0.75,1,1.25, and merge what is seen.
        flip: Also look at each image mirrored left to right.
        images: Where the names of images in a file of questions begin; the file's own folder by default.
        instruction: A line after every question; the run's, or "Answer the question using a single word or phrase".
        max_new_tokens: Where an answer is cut off; the run's, or 16 tokens.
        batch_size: Questions that are answered at once; 1 by default.
        device: Where the model runs: auto, cpu, cuda, cuda:1, mps.
        out: Where the results are written as JSON; eval_SPLIT.json in the run folder by default, for questions
            eval_NAME.json in the model's folder, with eval_NAME_answers.json beside it.
    """
    from piip import AugmentedTest, load
    from piip.files import write_json
    from piip.hub import find_folder, is_llava
    from piip.train.evaluation import evaluate_model
    from piip.train.folder import RunFolder

    test = AugmentedTest(scales, flip)
    asking = {"instruction": instruction, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if is_llava(find_folder(model)):
        seeing = {"split": split, "max_detections": max_detections, "scales": scales != (1.0,), "flip": flip}
        refuse(model, "a PIIP-LLaVA", seeing)
        given = {name: value for name, value in asking.items() if value is not None}
        return evaluate_answers(model, data, images, device, out, given)
    refuse(model, "no PIIP-LLaVA", {"images": images, **asking})
    run = RunFolder(Path(model))
    recipe = run.recipe() if run.config.is_file() else None
    if data is None and recipe is None:
        raise ConfigError(f"{model} is no run, so that its data set is unknown; add --data FOLDER.")
    folder = str(data) if data is not None or recipe is None else recipe.data.folder
    split = split or (recipe.data.val if recipe else "val")
    limit = max_detections
    if limit is None:
        limit = recipe.trainer.max_detections if recipe else 100
    scores = evaluate_model(load(model, device, test=test), folder, split, limit)
    _print(f"{model} on {split} of {folder}{_views(test)}", scores)
    target = out or (run.path / f"eval_{split}.json" if recipe else None)
    if target is not None:
        settings = {"data": folder, "split": split, "max_detections": limit, "test": test.to_dict()}
        write_json(target, settings | scores)
    return scores


_HEADLINE = ("A", "mIoU", "mAcc", "aAcc", "top1", "top5")
"""How the names of metrics over all classes begin."""


def _print(title: str, scores: dict[str, Any]) -> None:
    kinds = list(scores)
    names = [name for name in scores[kinds[0]] if name.startswith(_HEADLINE)]
    rows = [[name, *(percent(scores[kind][name]) for kind in kinds)] for name in names]
    table(title, ["metric", *kinds], rows)
    classes = scores[kinds[0]]["classes"]
    if len(classes) > 1:
        metric = next(iter(next(iter(classes.values()))))
        there = [name for name in classes if classes[name][metric] is not None]
        rows = [[name, *(percent(scores[kind]["classes"][name][metric]) for kind in kinds)] for name in there]
        absent = f" ({len(classes) - len(there)} others are not in the data)" * (len(there) < len(classes))
        table(f"{metric} by class{absent}", ["class", *kinds], rows)


def _views(test: "AugmentedTest") -> str:
    """Return in words how images are looked at, nothing if it is once."""
    scales = f" at {', '.join(f'{factor:g}' for factor in test.scales)} of the scale" * (
        test.scales != (1.0,)
    )
    return scales + " and mirrored" * test.flip
