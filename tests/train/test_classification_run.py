"""A whole classification run on made-up pictures: train, interrupt, resume, evaluate, predict, report."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import piip
from piip.cli import main
from piip.errors import ConfigError
from piip.train.classification import ClassificationModule
from piip.train.folder import RunFolder
from piip.train.recipe import recipe_from_dict
from piip.train.run import run_training
from tests.train.resuming import assert_resumes_exactly

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noisy pictures of one colour each, which is their class."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(colour, 30, (50, 60, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def small(pictures, epochs=2, **changes):
    values = {
        "name": "colours",
        "task": "classification",
        "model": {"name": "piip_nano", "changes": {"merging": {"kind": "none", "pyramid_levels": []}}},
        "data": {"folder": str(pictures), "batch_size": 4, "eval_batch_size": 4, "workers": 0},
        "image": {"scale": [64, 64]},
        "augment": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
        "optimizer": {"lr": 1e-3, "rest_factor": 2.0},
        "schedule": {"kind": "cosine", "warmup_steps": 4},
        "trainer": {"epochs": epochs, "accelerator": "cpu", "devices": 1, "samples": 2, "log_every": 1},
    }
    return recipe_from_dict(values | changes)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> RunFolder:
    torch.set_num_threads(1)
    return run_training(small(pictures), tmp_path_factory.mktemp("runs") / "run")


def test_the_folder_holds_everything(run, pictures):
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    assert {"results.json", "model/config.json", "curves/accuracy.png"} <= names
    assert len([name for name in names if name.startswith("samples/")]) == 2
    scores = run.read_results()["classification"]
    assert list(scores["classes"]) == sorted(COLOURS)
    assert np.array(scores["confusion"]).sum() == 12
    assert scores["top5"] == 1


def test_the_report_says_what_is_seen(run):
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "the five likeliest classes, the right one in green" in page
    assert "objects with a score" not in page


def test_colours_are_learned(pictures, tmp_path):
    plain = {"label_smoothing": 0.0}
    results = run_training(small(pictures, epochs=4, augment=plain), tmp_path / "run").read_results()
    assert results["classification"]["top1"] > 0.9


def test_an_interrupted_run_goes_on_exactly(run, pictures, tmp_path, monkeypatch):
    assert_resumes_exactly(run, small(pictures), ClassificationModule, 8, tmp_path / "parts", monkeypatch)


def test_the_saved_model_evaluates_as_in_training(run, capsys):
    assert main(["eval", str(run.path)]) == 0
    assert "top1" in capsys.readouterr().out
    measured = json.loads((run.path / "eval_val.json").read_text())["classification"]
    results = run.read_results()["classification"]
    assert measured["confusion"] == results["confusion"]
    assert measured["top1"] == results["top1"]


def test_prediction_writes_pictures_with_bars(run, pictures, tmp_path, capsys):
    images = pictures / "val" / "red"
    assert main(["predict", str(images), "--model", str(run.path), "--out", str(tmp_path)]) == 0
    assert "%" in capsys.readouterr().out
    listed = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert len(listed) == 4
    assert sum(entry["probability"] for entry in listed[0]["top"]) == pytest.approx(1, abs=1e-3)
    with Image.open(tmp_path / "0.png") as drawn:
        assert drawn.width > drawn.height
    seen = piip.load(run.path, device="cpu").predict(images / "0.png")
    assert seen.top(1)[0][0] == listed[0]["top"][0]["class"]


def test_the_report_shows_the_matrix(run):
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "top-1 accuracy" in page
    assert "Confusion matrix" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"batch_size": 3}}, "mixup and cutmix mix pairs"),
        ({"image": {"scale": [64, 32]}}, "classifiers read squares"),
        ({"model": {"name": "piip_nano"}}, "without pyramid_levels"),
    ],
)
def test_impossible_recipes(pictures, tmp_path, changes, message):
    if "data" in changes:
        changes = {"data": changes["data"] | {"folder": str(pictures), "workers": 0}}
    with pytest.raises(ConfigError, match=message):
        run_training(small(pictures, **changes), tmp_path / "run")
