"""A whole run on a few made-up pictures: train, interrupt, resume, evaluate, predict, report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from piip.cli import main
from piip.cli.demo import RECIPE
from piip.data.digits import make_digits
from piip.data.settings import ImageConfig
from piip.errors import ConfigError, DataError
from piip.hub import from_pretrained
from piip.predict import load
from piip.train.detection import DetectionModule
from piip.train.folder import RunFolder
from piip.train.recipe import ModelRecipe
from piip.train.run import run_training
from tests.train.resuming import assert_resumes_exactly

SIDE = 96


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, 8, 2, SIDE)
    return folder


def small(pictures: Path, **changes):
    trainer = replace(RECIPE.trainer, epochs=2, eval_every=1, samples=1, log_every=1, ema_decay=0.9)
    head = RECIPE.detector | {
        "fpn_channels": 16,
        "representation_size": 32,
        "mask_channels": 16,
        "box_samples": 32,
    }
    recipe = replace(
        RECIPE,
        data=replace(RECIPE.data, folder=str(pictures), batch_size=2, workers=0),
        image=ImageConfig(scale=(SIDE, SIDE)),
        detector=head,
        trainer=trainer,
    )
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> RunFolder:
    torch.set_num_threads(1)
    return run_training(small(pictures), tmp_path_factory.mktemp("runs") / "run")


def test_the_folder_holds_everything(run, pictures):
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "results.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "model/model.safetensors",
        "model/config.json",
        "curves/loss.png",
        "curves/mask_ap.png",
    } <= names
    assert len([name for name in names if name.startswith("samples/")]) == 2
    assert run.recipe() == small(pictures)
    results = run.read_results()
    assert {"box", "mask", "epoch", "step", "seconds"} <= results.keys()
    assert list(results["box"]["classes"]) == [str(digit) for digit in range(10)]
    assert not [name for name in names if "/." in name], "temporary files were left"


def test_an_interrupted_run_goes_on_exactly(run, pictures, tmp_path, monkeypatch):
    assert_resumes_exactly(run, small(pictures), DetectionModule, 6, tmp_path / "parts", monkeypatch)


def test_the_saved_model_evaluates_as_in_training(run, capsys):
    assert main(["eval", str(run.path)]) == 0
    assert "AP50" in capsys.readouterr().out
    measured = json.loads((run.path / "eval_val.json").read_text())
    results = run.read_results()
    assert [measured[kind] for kind in ("box", "mask")] == [results[kind] for kind in ("box", "mask")]


def test_it_predicts(run, pictures, tmp_path, capsys):
    image = sorted((pictures / "val").glob("*.jpg"))[0]
    words = ["predict", str(image), "--model", str(run.path), "--out", str(tmp_path), "--score", "0"]
    assert main(words) == 0
    found = json.loads((tmp_path / "predictions.json").read_text())
    assert [category["name"] for category in found["categories"]] == [str(digit) for digit in range(10)]
    assert len(COCO(str(tmp_path / "predictions.json")).getAnnIds()) == len(found["annotations"])
    assert (tmp_path / f"{image.stem}.png").stat().st_size > 0
    assert load(run.path).image == ImageConfig(scale=(SIDE, SIDE))


def test_it_reports(run, capsys):
    assert main(["report", str(run.path), "--title", "Digits & <more>"]) == 0
    page = (run.path / "report.html").read_text()
    assert "Digits &amp; &lt;more&gt;" in page
    for heading in (
        "What it sees",
        "The inverted pyramid",
        "How it learned",
        "How well it does",
        "What it costs",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "the page must need nothing else"


def test_a_dino_by_the_same_verbs(pictures, tmp_path, capsys):
    head = {"kind": "dino", "embed_dim": 32, "num_groups": 8, "encoder_depth": 1, "decoder_depth": 2}
    sizes = {"ffn_dim": 32, "num_queries": 20, "num_denoising": 6, "detections_per_image": 10}
    model = replace(RECIPE.model, changes={"merging": {"kind": "conv", "pyramid_levels": [2, 3, 4]}})
    recipe = small(pictures, detector=head | sizes, model=model)
    run = run_training(recipe, tmp_path / "whole")
    assert_resumes_exactly(
        run, recipe, DetectionModule, 6, tmp_path / "parts", monkeypatch=pytest.MonkeyPatch()
    )
    assert run.read_results().keys() >= {"box", "epoch"}
    assert "mask" not in run.read_results()
    assert main(["eval", str(run.path)]) == 0
    assert json.loads((run.path / "eval_val.json").read_text())["box"] == run.read_results()["box"]
    image = sorted((pictures / "val").glob("*.jpg"))[0]
    assert main(["predict", str(image), "--model", str(run.path), "--out", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())["annotations"]
    assert len(found) <= 10
    assert main(["report", str(run.path)]) == 0
    assert "decoder" in (run.path / "report.html").read_text()


def test_a_dino_needs_three_maps(pictures, tmp_path):
    with pytest.raises(
        ConfigError, match=r"dino needs a network with three maps, this one has four; .* \[2, 3, 4\]"
    ):
        run_training(small(pictures, detector={"kind": "dino"}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no detector of the kind 'dina'.*dino"):
        run_training(small(pictures, detector={"kind": "dina"}), tmp_path / "run")


def test_a_second_run_needs_its_own_folder(run, pictures):
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        run_training(small(pictures), run.path)
    other = small(pictures, optimizer=replace(RECIPE.optimizer, lr=1.0))
    with pytest.raises(ConfigError, match=r"another optimizer\.lr"):
        run_training(other, run.path, resume=True)
    averaged = small(pictures, trainer=replace(small(pictures).trainer, ema_decay=None))
    with pytest.raises(ConfigError, match=r"another trainer\.ema_decay"):
        run_training(averaged, run.path, resume=True)


def test_a_longer_run_goes_on_and_writes_its_recipe(run, pictures, tmp_path):
    shutil.copytree(run.path, tmp_path / "longer")
    longer = small(pictures, trainer=replace(small(pictures).trainer, epochs=3))
    folder = run_training(longer, tmp_path / "longer", resume=True)
    assert folder.recipe().trainer.epochs == 3
    assert folder.read_metrics()[-1]["epoch"] == 3


def test_the_data_are_not_the_run(pictures):
    with pytest.raises(ConfigError, match="is the folder of the data"):
        run_training(small(pictures), pictures)


def test_hardware_that_is_not_there_leaves_nothing(pictures, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe = small(pictures, trainer=replace(small(pictures).trainer, accelerator="gpu"))
    with pytest.raises(ConfigError, match="accelerator gpu"):
        run_training(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda val: val["annotations"][0].pop("segmentation"), "1 of .* objects have no outline"),
        (lambda val: val.update(annotations=[]), "no objects, so that nothing can be measured"),
        (lambda val: val["categories"].append({"id": 99, "name": "x"}), "the class 'x', which the training"),
    ],
)
def test_validation_data_that_cannot_be_measured_stops_before_training(pictures, tmp_path, damage, message):
    shutil.copytree(pictures, tmp_path / "data")
    path = tmp_path / "data/annotations/val.json"
    val = json.loads(path.read_text())
    damage(val)
    path.write_text(json.dumps(val))
    with pytest.raises(DataError, match=message):
        run_training(small(tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_predicting_never_overwrites_an_image_and_leaves_no_half(run, pictures, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    source = sorted((pictures / "val").glob("*.jpg"))[0]
    Image.open(source).save(images / "a.png")
    words = ["predict", str(images), "--model", str(run.path)]
    assert main([*words, "--out", str(images)]) == 2
    assert "would overwrite an image" in capsys.readouterr().err
    shutil.copy(source, images / "b.jpg")
    (images / "c.jpg").write_bytes(source.read_bytes()[:300])
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "c.jpg cannot be read" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_damaged_run_files_are_named(run, tmp_path, capsys):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run/metrics.csv").write_text("step,a\n1,x\n")
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "metrics.csv is damaged" in capsys.readouterr().err
    (tmp_path / "run/results.json").write_text("{}")
    assert main(["report", str(tmp_path / "run")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_going_on_from_a_model_keeps_or_renews_its_classes(run, pictures, tmp_path):
    start = ModelRecipe(start=str(run.path))
    few = replace(small(pictures).data, classes=("3", "4"))
    with pytest.raises(
        ConfigError, match=r"knows 10 classes .* has 2 classes \(3, 4\); add --model.new_head"
    ):
        run_training(small(pictures, model=start, data=few), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    once = replace(small(pictures).trainer, epochs=1)
    renewed = replace(start, new_head=True, freeze=(1,))
    folder = run_training(small(pictures, model=renewed, data=few, trainer=once), tmp_path / "b")
    model = from_pretrained(folder.model)
    assert model.config.classes == ("3", "4")
    before = from_pretrained(run.model).backbone.branches[0].state_dict()
    after = model.backbone.branches[0].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_bad_data_stops_with_a_sentence_and_leaves_nothing(pictures, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    for path in (broken / "train").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read"):
        run_training(small(broken), tmp_path / "run")
    # Stopped before its first checkpoint, the run may begin anew, also as --resume.
    shutil.rmtree(broken)
    shutil.copytree(pictures, broken)
    once = replace(small(broken).trainer, epochs=1)
    assert run_training(small(broken, trainer=once), tmp_path / "run", resume=True).last.exists()
    with pytest.raises(DataError, match="does not exist"):
        run_training(small(tmp_path / "nowhere"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
