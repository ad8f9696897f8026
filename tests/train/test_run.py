"""A whole run on a few made-up pictures: train, interrupt, resume, evaluate, predict, report."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from piip.cli import main
from piip.cli.demo import RECIPE
from piip.data.digits import make_digits
from piip.data.transforms import ImageConfig
from piip.errors import ConfigError, DataError, PiipError
from piip.hub import from_pretrained
from piip.predict import load
from piip.train.checkpoints import AtomicCheckpointIO
from piip.train.detection import DetectionModule
from piip.train.folder import RunFolder
from piip.train.recipe import ModelRecipe
from piip.train.run import run_training

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
    original = DetectionModule.losses

    def interrupted(self, batch):
        if self.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(DetectionModule, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt, match="after step 6"):
        run_training(small(pictures), tmp_path / "parts")
    monkeypatch.undo()
    resumed = run_training(small(pictures), tmp_path / "parts", resume=True)
    assert resumed.metrics.read_text() == run.metrics.read_text()
    one, two = (AtomicCheckpointIO().load_checkpoint(folder.last)["state_dict"] for folder in (run, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)
    results = [{**folder.read_results(), "seconds": 0} for folder in (run, resumed)]
    assert results[0] == results[1]


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


def test_a_second_run_needs_its_own_folder(run, pictures):
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        run_training(small(pictures), run.path)
    other = small(pictures, optimizer=replace(RECIPE.optimizer, lr=1.0))
    with pytest.raises(ConfigError, match="another optimizer"):
        run_training(other, run.path, resume=True)


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
    with pytest.raises(PiipError, match="no checkpoint to resume from"):
        run_training(small(broken), tmp_path / "run", resume=True)
    with pytest.raises(DataError, match="does not exist"):
        run_training(small(tmp_path / "nowhere"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
