"""Training a contender by ``piip train``'s own code and asking it by ``piip eval``'s."""

from pathlib import Path

from benchmarks.reader.settings import SIZES, Settings
from benchmarks.reader.towers import out_grid, tower
from piip.cli.evaluate import evaluate
from piip.train.recipe import TrainRecipe
from piip.train.run import run_training

ASKED_AT_ONCE = 50
_LONGEST_PROMPT = 128


def recipe(
    contender: str, seed: int, number: int, settings: Settings, data: Path, language: Path, out: Path
) -> TrainRecipe:
    """Return the recipe of a stage; contenders differ in the tower alone, runs of one in the seed.

    Args:
        contender: Whose tower it is.
        seed: Decides new weights and the order of the images.
        number: Of the stage, from 1.
        settings: Of the experiment.
        data: Folder of the samples.
        language: Folder of the language model.
        out: Folder of the experiment.
    """
    stage = settings.stages[number - 1]
    new = {"name": "piip_nano_deit", "changes": tower(contender, settings).to_dict()}
    before = {"start": str(folder_of(out, contender, seed, number - 1))}
    return TrainRecipe.from_dict(
        {
            "name": f"{contender}, seed {seed}, stage {number}",
            "task": "multimodal",
            "model": new if number == 1 else before,
            "language": {
                "model": str(language),
                "out_grid": out_grid(settings),
                "chat": "own",
                "instruction": "",
                "max_length": _LONGEST_PROMPT,
            },
            "data": {
                "folder": str(data),
                "train": f"train_{number}",
                "val": f"val_{number}",
                "batch_size": settings.batch_size,
                "eval_batch_size": settings.batch_size,
                "workers": 0,
            },
            "optimizer": {"lr": stage.lr, "betas": (0.9, 0.98)},
            "schedule": {"kind": "cosine", "warmup_steps": settings.warmup_steps},
            "trainer": {
                "epochs": stage.epochs,
                "accelerator": "cpu",
                "devices": 1,
                "clip_norm": 1.0,
                "eval_every": stage.epochs,  # at the end alone: no epoch is chosen
                "samples": 0,
                "seed": seed,
            },
        }
    )


def run(contender: str, seed: int, settings: Settings, data: Path, language: Path, out: Path) -> Path:
    """Train and ask one contender, unless that has been done; an interrupted training goes on.

    Returns:
        The last stage's run folder, with the scores and answers of every size of text.
    """
    for number in range(1, len(settings.stages) + 1):
        folder = folder_of(out, contender, seed, number)
        if not (folder / "results.json").exists():
            stage = recipe(contender, seed, number, settings, data, language, out)
            run_training(stage, folder, resume=True)
    for size in SIZES:
        if not (folder / f"eval_asked_{size}.json").exists():
            evaluate(str(folder), data / f"asked_{size}.json", batch_size=ASKED_AT_ONCE, device="cpu")
    return folder


def folder_of(out: Path, contender: str, seed: int, number: int) -> Path:
    """Return the run folder of a stage."""
    return out / f"{contender.replace(' ', '_')}_{seed}_stage_{number}"


def final_folder(out: Path, contender: str, seed: int, settings: Settings) -> Path:
    """Return the run folder of the last stage, where the answers are."""
    return folder_of(out, contender, seed, len(settings.stages))
