"""``piip train``."""

from pathlib import Path

from piip.cli.llava import silence_transformers
from piip.train.recipe import TrainRecipe


def train_model(recipe: TrainRecipe, out: Path | None = None, resume: bool = False) -> Path:
    """Train a model from a recipe.

    Every setting of the recipe is an option of its own: piip train recipes/bccd.yaml --optimizer.lr 2e-4.
    The run folder holds the resolved recipe, metrics.csv, results.json, curves, samples, checkpoints and model/,
    which piip predict loads.

    Args:
        recipe: A YAML file; see recipes/.
        out: Run folder; runs/NAME by default, with the recipe file's name.
        resume: Go on from the last checkpoint of the run folder.
    """
    from piip.train.run import run_training

    if recipe.task == "multimodal":
        silence_transformers()
    return run_training(recipe, out or Path("runs") / (recipe.name or "run"), resume=resume).path
