"""A whole segmentation run on made-up pictures: train, interrupt, resume, evaluate, predict, report."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import piip
from piip.cli import main
from piip.errors import ConfigError, DataError
from piip.train.folder import RunFolder
from piip.train.recipe import recipe_from_dict
from piip.train.run import run_training
from piip.train.segmentation import SegmentationData, SegmentationModule
from tests.train.resuming import assert_resumes_exactly

pytest.importorskip("transformers")

SIDE = 96


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Bright discs on dark grounds, which is what is to be learned."""
    root = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for split, count in (("train", 8), ("val", 2)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            (y, x), radius = random.integers(25, SIDE - 25, 2), random.integers(14, 24)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            pixels = random.integers(0, 60, (SIDE, SIDE, 3)) + disc[..., None] * np.array([180, 120, 40])
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{number}.png")
            Image.fromarray(disc.astype(np.uint8)).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text("ground\ndisc\n")
    return root


def small(pictures, epochs=2, **changes):
    values = {
        "name": "discs",
        "task": "segmentation",
        "model": {"name": "piip_nano"},
        "data": {"folder": str(pictures), "batch_size": 2, "workers": 0},
        "image": {"scale": [SIDE, SIDE]},
        "augment": {"policy": "crop", "crop": 64, "ratios": [0.8, 1.2]},
        "segmenter": {"channels": 32, "crop_size": 64, "stride": 43},
        "optimizer": {"lr": 2e-3},
        "schedule": {"kind": "poly", "warmup_steps": 4},
        "trainer": {"epochs": epochs, "accelerator": "cpu", "devices": 1, "samples": 1, "log_every": 1},
    }
    return recipe_from_dict(values | changes)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> RunFolder:
    torch.set_num_threads(1)
    return run_training(small(pictures), tmp_path_factory.mktemp("runs") / "run")


def test_the_folder_holds_everything(run, pictures):
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    assert {"results.json", "model/config.json", "curves/miou.png", "samples/0_0.png"} <= names
    assert run.recipe() == small(pictures)
    scores = run.read_results()["segmentation"]
    assert set(scores["classes"]) == {"ground", "disc"}
    assert 0 < scores["mIoU"] <= scores["aAcc"] <= 1


def test_an_interrupted_run_goes_on_exactly(run, pictures, tmp_path, monkeypatch):
    assert_resumes_exactly(run, small(pictures), SegmentationModule, 6, tmp_path / "parts", monkeypatch)


def test_the_saved_model_evaluates_as_in_training(run, capsys):
    assert main(["eval", str(run.path)]) == 0
    assert "mIoU" in capsys.readouterr().out
    measured = json.loads((run.path / "eval_val.json").read_text())["segmentation"]
    assert measured == run.read_results()["segmentation"]


def test_prediction_writes_pictures_and_masks(run, pictures, tmp_path, capsys):
    images = pictures / "images" / "val"
    assert main(["predict", str(images), "--model", str(run.path), "--out", str(tmp_path)]) == 0
    assert "% ground" in capsys.readouterr().out
    listed = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert [(entry["height"], entry["width"]) for entry in listed] == [(SIDE, SIDE)] * 2
    for entry in listed:
        assert sum(entry["shares"].values()) == pytest.approx(1, abs=1e-3)
    with Image.open(tmp_path / "0_mask.png") as mask, Image.open(tmp_path / "0.png") as drawn:
        assert mask.size == (SIDE, SIDE)
        assert set(np.unique(np.asarray(mask))) <= {0, 1}
        assert drawn.width > SIDE
    seen = piip.load(run.path, device="cpu").predict(images / "0.png")
    assert seen.labels.shape == (SIDE, SIDE)
    with Image.open(tmp_path / "0_mask.png") as mask:
        assert (np.asarray(mask) == seen.labels.numpy()).all()


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_without_a_class_are_refused(pictures, tmp_path, split):
    shutil.copytree(pictures, tmp_path / "data")
    for path in (tmp_path / "data" / "masks" / split).iterdir():
        Image.new("L", (SIDE, SIDE), 77).save(path)
    with pytest.raises(DataError, match=f"No pixel of the first . images in .*{split} has a class"):
        run_training(small(tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_report_shows_the_metrics(run):
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "mean IoU" in page
    assert ".." not in re.sub(r"<style>.*</style>|<pre>.*</pre>|base64,[^\"]*", "", page, flags=re.DOTALL)
    assert "disc" in page


def test_a_trained_segmenter_is_a_start(run, pictures, tmp_path):
    recipe = small(pictures, epochs=1, model={"start": str(run.path)})
    assert run_training(recipe, tmp_path / "more").read_results()["segmentation"]["mIoU"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"folder": "FOLDER", "batch_size": 1}}, "at least 2"),
        ({"augment": {"policy": "resize"}}, "set augment.policy to crop"),
        ({"segmenter": {"chanels": 3}}, "chanels"),
        ({"model": {"name": "piip_tsb_368_192_128_cls"}}, "needs a network with four maps"),
    ],
)
def test_impossible_recipes(pictures, tmp_path, changes, message):
    if "data" in changes:
        changes = {"data": changes["data"] | {"folder": str(pictures), "workers": 0}}
    with pytest.raises(ConfigError, match=message):
        run_training(small(pictures, **changes), tmp_path / "run")


def test_broken_masks_stop_with_their_name(pictures, tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(pictures, folder)
    (folder / "masks" / "train" / "3.png").write_bytes(b"no image")
    (tmp_path / "recipe.yaml").write_text(small(folder).to_yaml())
    assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "3.png cannot be read" in capsys.readouterr().err


def test_classes_are_measured_by_their_names(run, pictures, tmp_path, capsys):
    """The same masks with the classes in another order, and the values with them."""
    swapped = tmp_path / "swapped"
    shutil.copytree(pictures, swapped)
    for path in (swapped / "masks").rglob("*.png"):
        with Image.open(path) as file:
            values = 1 - np.asarray(file)
        Image.fromarray(values.astype(np.uint8)).save(path)
    (swapped / "classes.txt").write_text("disc\nground\n")
    assert main(["eval", str(run.path), "--data", str(swapped), "--out", str(tmp_path / "swapped.json")]) == 0
    measured = json.loads((tmp_path / "swapped.json").read_text())["segmentation"]
    assert measured == run.read_results()["segmentation"]
    (swapped / "classes.txt").write_text("disc\nwall\n")
    assert main(["eval", str(run.path), "--data", str(swapped)]) == 2
    assert "has no class 'ground'" in capsys.readouterr().err


def test_settings_of_another_task_are_refused(pictures):
    with pytest.raises(ConfigError, match="detector has settings, but the task is segmentation"):
        small(pictures, detector={"kind": "dino"})
    with pytest.raises(ConfigError, match=r"augment\.mixup is 0\.5, which has no effect"):
        small(pictures, augment={"policy": "crop", "crop": 64, "mixup": 0.5})


def test_every_process_needs_a_batch_to_evaluate(pictures):
    data = SegmentationData(small(pictures))
    for processes in (2, 3):
        data.trainer = SimpleNamespace(global_rank=0, world_size=processes)
        if processes == 2:
            assert len(data.val_dataloader()) == 1
            continue
        with pytest.raises(ConfigError, match="2 images has fewer batches than there are processes"):
            data.val_dataloader()
