"""A training run from a recipe to a folder with a model, metrics, curves and samples."""

import time
from pathlib import Path
from typing import Any

import torch

from piip.errors import ConfigError, PiipError, require
from piip.files import write_json
from piip.tasks.detection import Detector
from piip.train.environment import environment
from piip.train.folder import RunFolder
from piip.train.recipe import TrainRecipe, load_recipe


def run_training(recipe: TrainRecipe | str | Path, out: str | Path, *, resume: bool = False) -> RunFolder:
    """Train a model, evaluate it and leave everything in one folder.

    Args:
        recipe: The run, or the path of its YAML file.
        out: The run folder.
        resume: Go on from the folder's last checkpoint, or start if there is none.

    Returns:
        The run folder.

    Raises:
        PiipError: Anything that the user can mend; one sentence says how.
        KeyboardInterrupt: Ctrl-C; the run can be resumed exactly.
    """
    require("lightning", "train", "Training")
    require("pycocotools", "detect", "Training a detector")
    from lightning.pytorch.utilities import rank_zero_only

    from piip.train.building import build_detector
    from piip.train.data import DetectionData
    from piip.train.detection import DetectionModule
    from piip.train.fitting import fit

    recipe = recipe if isinstance(recipe, TrainRecipe) else load_recipe(recipe)
    folder = RunFolder(Path(out))
    data = DetectionData(recipe)
    torch.manual_seed(recipe.trainer.seed)
    detector = build_detector(recipe, data.train_set.classes)
    if getattr(rank_zero_only, "rank", 0) == 0:
        _open(folder, recipe, resume)
    module = DetectionModule(detector, recipe, data)
    begin = time.monotonic()
    trainer = fit(module, data, folder, resume=resume)
    if trainer.is_global_zero:
        finish(folder, detector, recipe, data.val_set, time.monotonic() - begin)
    return folder


def finish(folder: RunFolder, detector: Detector, recipe: TrainRecipe, val_set: Any, seconds: float) -> None:
    """Write the best weights as a model, and samples and curves beside it."""
    from piip.hub import save_pretrained
    from piip.train.checkpoints import model_weights
    from piip.train.curves import plot_curves
    from piip.train.samples import draw_samples

    detector.load_state_dict(model_weights(folder.best))
    detector.eval()
    save_pretrained(detector, folder.model, metadata=model_metadata(recipe, val_set.category_ids))
    draw_samples(detector, val_set, folder.samples, recipe.trainer.samples)
    results = folder.read_results() | {"name": recipe.name, "seconds": round(seconds, 1)}
    write_json(folder.results, results)
    plot_curves(folder)


def model_metadata(recipe: TrainRecipe, category_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return what a saved detector must know beside its own configuration."""
    from dataclasses import asdict

    return {"image": asdict(recipe.image), "category_ids": list(category_ids)}


def _open(folder: RunFolder, recipe: TrainRecipe, resume: bool) -> None:
    """Begin a run folder, or check that it holds the run that is to go on."""
    if not (resume and folder.config.exists()):
        folder.start(recipe, environment())
        return
    before = folder.recipe()
    for part in ("model", "data", "image", "augment", "detector", "optimizer", "schedule"):
        if getattr(before, part) != getattr(recipe, part):
            raise ConfigError(
                f"{folder.path} was trained with another {part}; resume with the same recipe, or start a new run "
                "with another --out."
            )
    if not folder.last.exists():
        raise PiipError(f"{folder.path} has no checkpoint to resume from; start again with another --out.")
