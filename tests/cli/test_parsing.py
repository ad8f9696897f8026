from dataclasses import dataclass
from pathlib import Path

import pytest

from piip.cli.parsing import call
from piip.errors import ConfigError
from piip.train.recipe import TrainRecipe


@dataclass(frozen=True)
class Point:
    x: int = 0


def measure(name: str, sizes: tuple[int, ...] | None = None, deep: bool = False, out: Path = Path("x")):
    """Measure something.

    Args:
        name: Its name.
        sizes: Its sizes,
            in pixels.
        deep: Look inside.
        out: Where to.
    """
    return name, sizes, deep, out


def gather(files: list[Path], *, model: str):
    """Gather files.

    Args:
        files: The files.
        model: The model.
    """
    return files, model


def run(recipe: TrainRecipe, out: Path | None = None, resume: bool = False):
    """Run a recipe.

    Args:
        recipe: The recipe.
        out: Where to.
        resume: Go on.
    """
    return recipe, out, resume


def test_required_parameters_are_positional_and_the_others_options():
    assert call(measure, ["a"], "x") == ("a", None, False, Path("x"))
    assert call(measure, ["a", "--sizes", "3,2,1", "--out=y"], "x") == ("a", (3, 2, 1), False, Path("y"))
    assert call(measure, ["a", "--sizes=[3,2]", "--deep"], "x") == ("a", (3, 2), True, Path("x"))
    assert call(measure, ["--deep", "a"], "x")[2] is True
    assert call(measure, ["a", "--deep", "false"], "x")[2] is False


def test_lists_take_all_that_follow():
    assert call(gather, ["a", "b", "--model", "m"], "x") == ([Path("a"), Path("b")], "m")
    with pytest.raises(ConfigError, match="files"):
        call(gather, ["--model", "m"], "x")


def test_a_recipe_is_a_file_and_its_settings_are_options(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer: {lr: 1.0e-3}\ndetector: {masks: false}\nmodel: {name: piip_nano}")
    words = [str(path), "--optimizer.weight_decay", "0", "--image.scale", "640,480", "--resume"]
    recipe, out, resume = call(run, [*words, "--detector.fpn_channels", "64"], "x")
    assert (recipe.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("mine", 1e-3, 0)
    assert recipe.image.scale == (640, 480)
    assert recipe.detector == {"masks": False, "fpn_channels": 64}
    assert (out, resume) == (None, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer.lr", "fast"], "optimizer.lr is 'fast'; expected float"),
        (["--optimizer.lrr", "1"], "Did you mean 'optimizer.lr'"),
        (["--trainer.precision", "16"], "trainer.precision is '16'; expected one of '32', 'bf16'"),
        (["--trainer.epochs", "0"], "trainer.epochs is 0"),
    ],
)
def test_complaints_are_one_sentence(tmp_path, words, message):
    path = tmp_path / "mine.yaml"
    path.write_text("{}")
    with pytest.raises(ConfigError) as caught:
        call(run, [str(path), *words], "x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_descriptions_reach_the_help(capsys):
    for function, word in ((measure, "Its sizes, in pixels."), (gather, "The files."), (run, "Weight decay")):
        with pytest.raises(SystemExit):
            call(function, ["--help"], "piip x")
        assert word in " ".join(capsys.readouterr().out.split())
