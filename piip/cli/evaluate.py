"""``piip eval``."""

from pathlib import Path
from typing import Any

from piip.cli.console import percent, table
from piip.errors import ConfigError


def evaluate(
    model: str,
    data: Path | None = None,
    split: str | None = None,
    max_detections: int | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a trained model on a data set: overall, by class and, for detectors, by object size.

    Args:
        model: A run, or the folder of a saved model.
        data: The data set; that of the run by default.
        split: The split; the run's validation split by default.
        max_detections: Detections per image that count; the run's setting, or 100.
        device: Where the model runs: auto, cpu, cuda, cuda:1, mps.
        out: Where the results are written as JSON; eval_SPLIT.json in the run folder by default.
    """
    from piip import load
    from piip.files import write_json
    from piip.train.evaluation import evaluate_model
    from piip.train.folder import RunFolder

    run = RunFolder(Path(model))
    recipe = run.recipe() if run.config.is_file() else None
    if data is None and recipe is None:
        raise ConfigError(f"{model} is no run, so that its data set is unknown; add --data FOLDER.")
    folder = str(data) if data is not None or recipe is None else recipe.data.folder
    split = split or (recipe.data.val if recipe else "val")
    limit = max_detections
    if limit is None:
        limit = recipe.trainer.max_detections if recipe else 100
    scores = evaluate_model(load(model, device), folder, split, limit)
    _print(f"{model} on {split} of {folder}", scores)
    target = out or (run.path / f"eval_{split}.json" if recipe else None)
    if target is not None:
        write_json(target, {"data": folder, "split": split, "max_detections": limit} | scores)
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
        rows = [
            [name, *(percent(scores[kind]["classes"][name][metric]) for kind in kinds)] for name in classes
        ]
        table(f"{metric} by class", ["class", *kinds], rows)
