"""``piip demo``."""

import dataclasses
import shutil
from pathlib import Path

from piip.cli.console import console
from piip.data.settings import AugmentConfig, ImageConfig
from piip.train.recipe import DataRecipe, ModelRecipe, TrainerRecipe, TrainRecipe
from piip.train.settings import OptimizerConfig, ScheduleConfig

TITLE = "Handwritten digits on photographs"
INTRODUCTION = (
    "A nano PIIP with three branches and a Mask R-CNN head, trained from random weights on a few hundred pictures "
    "for a few minutes on the CPU."
)
NUM_TRAIN, NUM_VAL, SIDE = 400, 40, 256

RECIPE = TrainRecipe(
    name="digits",
    model=ModelRecipe(name="piip_nano"),
    data=DataRecipe(folder="runs/demo-data", batch_size=2, workers=1),
    image=ImageConfig(scale=(SIDE, SIDE)),
    augment=AugmentConfig(flip=0.0),
    detector={
        "masks": True,
        "fpn_channels": 64,
        "representation_size": 256,
        "mask_channels": 64,
        "rpn_pre_nms_train": 500,
        "rpn_pre_nms_test": 300,
        "rpn_post_nms": 200,
        "box_samples": 128,
    },
    optimizer=OptimizerConfig(lr=1e-3),
    schedule=ScheduleConfig(kind="cosine", warmup_steps=50),
    trainer=TrainerRecipe(
        epochs=6, accelerator="cpu", devices=1, clip_norm=1.0, ema_decay=0.99, eval_every=2, samples=8
    ),
)
"""Also recipes/digits.yaml."""


def demo(out: Path = Path("runs/demo"), epochs: int | None = None, again: bool = False) -> Path:
    """Train a small model on made-up pictures for a few minutes and write a report.

    Real handwritten digits of 12 to 200 pixels are put on real photographs, a nano PIIP with a Mask R-CNN head
    learns to find them, and report.html shows what it learned. Nothing is downloaded; two CPU cores are enough.
    An interrupted demo goes on where it stopped, a finished one is only reported on.

    Args:
        out: Run folder; the pictures go into a folder beside it, whose name ends in -data.
        epochs: Another number of epochs: more of them find more digits.
        again: Delete the run folder and begin anew.
    """
    from piip.data.digits import make_digits
    from piip.report import write_report
    from piip.train.folder import RunFolder
    from piip.train.run import run_training

    folder = RunFolder(out)
    if again and folder.config.exists():
        shutil.rmtree(out)
    if not folder.model.exists():
        pictures = out.parent / f"{out.name}-data"
        console().print(f"drawing {NUM_TRAIN + NUM_VAL} pictures into {pictures}", markup=False)
        make_digits(pictures, NUM_TRAIN, NUM_VAL, SIDE)
        try:
            run_training(demo_recipe(pictures, epochs), out, resume=folder.last.exists())
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("stopped by Ctrl-C; the same command goes on from here") from stop
    page = write_report(out, title=TITLE, introduction=INTRODUCTION)
    console().print(f"report: {page}", markup=False)
    return page


def demo_recipe(pictures: Path, epochs: int | None = None) -> TrainRecipe:
    """Return the demo's recipe.

    Args:
        pictures: Folder of the data set.
        epochs: Another number of epochs.
    """
    trainer = dataclasses.replace(RECIPE.trainer, epochs=RECIPE.trainer.epochs if epochs is None else epochs)
    data = dataclasses.replace(RECIPE.data, folder=str(pictures))
    return dataclasses.replace(RECIPE, data=data, trainer=trainer)
