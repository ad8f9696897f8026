"""A training run from a recipe to a folder with a model, metrics, curves and samples."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from piip.errors import CheckpointError, ConfigError, require
from piip.files import write_json
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
    recipe = recipe if isinstance(recipe, TrainRecipe) else load_recipe(recipe)
    if recipe.task == "detection":
        require("pycocotools", "detect", "Training a detector")
    from lightning.pytorch.utilities import rank_zero_only

    from piip.train.building import build_model, check_model
    from piip.train.fitting import build_trainer, fit, quiet
    from piip.train.task import task_of

    folder = RunFolder(Path(out))
    if folder.path.resolve() == Path(recipe.data.folder or "nowhere").resolve():
        raise ConfigError(
            f"{folder.path} is the folder of the data; choose another one for the run with --out."
        )
    task = task_of(recipe)
    check_model(recipe)
    data = task.data(recipe)
    with quiet():
        build_trainer(recipe, folder)  # hardware that is not there is found before anything is written
    torch.manual_seed(recipe.trainer.seed)
    first = getattr(rank_zero_only, "rank", 0) == 0
    empty = recipe.trainer.strategy == "fsdp" and not first  # sharding brings the first process's weights
    model = (task.without_weights(recipe, data) if empty else None) or build_model(recipe, data.classes)
    if first:
        _open(folder, recipe, resume)
    module = task.module(model, recipe, data)
    begin = time.monotonic()
    trainer = fit(module, data, folder, resume=resume)
    if trainer.is_global_zero:
        if recipe.trainer.strategy == "fsdp":  # this process has a part of it
            model = build_model(recipe, data.classes)
        finish(folder, model, recipe, data, time.monotonic() - begin)
    return folder


def finish(folder: RunFolder, model: nn.Module, recipe: TrainRecipe, data: Any, seconds: float) -> None:
    """Write the best weights as a model, and samples and curves beside it."""
    from piip.train.checkpoints import model_weights
    from piip.train.curves import plot_curves
    from piip.train.task import task_of

    task = task_of(recipe)
    _take_over(model, model_weights(folder.best))
    model.eval()
    task.save(model, folder.model, recipe, data)
    task.draw_samples(model, data, folder.samples, recipe.trainer.samples)
    results = folder.read_results() | {"name": recipe.name, "seconds": round(seconds, 1)}
    write_json(folder.results, results)
    plot_curves(folder)


def _take_over(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights, of which those that were not trained may be missing."""
    missing, unknown = model.load_state_dict(weights, strict=False)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if unknown or set(missing) - fixed:
        raise CheckpointError(
            f"The best checkpoint is of another model: {sorted([*unknown, *set(missing) - fixed])[0]}."
        )


FREE_TO_CHANGE = {
    "data.workers",
    "data.eval_batch_size",
    *("trainer." + name for name in ("epochs", "accelerator", "devices", "nodes", "grad_checkpointing")),
    *("trainer." + name for name in ("eval_every", "save_every", "max_detections", "log_every", "samples")),
}
"""Settings that may differ when a run goes on: all others would make it another run."""


def _open(folder: RunFolder, recipe: TrainRecipe, resume: bool) -> None:
    """Begin a run folder, or check that it holds the run that is to go on."""
    if resume and folder.last.exists():
        before, now = folder.recipe().to_dict(), recipe.to_dict()
        changed = [name for name in _differences(before, now) if name not in FREE_TO_CHANGE]
        if changed:
            raise ConfigError(
                f"{folder.path} was trained with another {changed[0]}; resume with the same recipe, or start a "
                "new run with another --out."
            )
    folder.write(recipe, environment(), resume)


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of the settings that differ, but for the run's name."""
    for key in now.keys() - ({"name"} if not prefix else set()):
        if isinstance(now[key], dict) and isinstance(before.get(key), dict) and not prefix:
            yield from _differences(before[key], now[key], f"{key}.")
        elif before.get(key) != now[key]:
            yield f"{prefix}{key}"
