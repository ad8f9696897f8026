"""``piip convert`` around the conversion itself, which tests/convert covers."""

from pathlib import Path

import pytest
import torch

from piip.cli import main
from piip.cli.coco import CATEGORY_IDS, CLASSES
from piip.config import MergingConfig
from piip.factory import create_model
from piip.hub import from_pretrained
from piip.network import PIIP
from piip.predict import load
from piip.tasks.classification import ClassifierConfig, ImageClassifier
from piip.tasks.detection import RCNN
from piip.tasks.segmentation import Segmenter

RECIPE = """
model: {name: piip_nano}
image: {scale: [128, 96], resize: exact}
detector: {fpn_channels: 16, masks: false}
"""


def convert_to(monkeypatch, model_of):
    monkeypatch.setattr("piip.convert.checkpoint.convert_checkpoint", model_of)


def test_coco_has_eighty_classes():
    assert len(CLASSES) == len(set(CLASSES)) == len(CATEGORY_IDS) == 80
    assert CATEGORY_IDS[0] == 1
    assert CATEGORY_IDS[-1] == 90
    assert dict(zip(CLASSES, CATEGORY_IDS, strict=True))["toothbrush"] == 90


def test_coco_classes_are_those_of_the_annotations(shared):
    from piip.data.index import read_index
    from piip.data.layout import find_dataset

    index = read_index(find_dataset(shared / "data" / "coco_tiny").split("val"))
    assert (index.classes, index.category_ids) == (CLASSES, CATEGORY_IDS)


def test_a_released_detector_becomes_a_folder_that_predicts(monkeypatch, tmp_path):
    def fake(path, config, head):
        assert (path, head.classes, head.masks) == (Path("official.pth"), CLASSES, False)
        return RCNN(head, PIIP(config)).eval()

    convert_to(monkeypatch, fake)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    assert main(["convert", "official.pth", str(out), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    predictor = load(out)
    assert predictor.image.resize == "exact"
    assert predictor.category_ids == CATEGORY_IDS
    assert len(predictor.predict(torch.zeros(3, 96, 128, dtype=torch.uint8)).class_names) == 80


def test_a_released_segmenter_becomes_a_folder_that_predicts(monkeypatch, tmp_path):
    pytest.importorskip("transformers")

    def fake(path, config, head):
        assert len(head.classes) == 150
        return Segmenter(head, PIIP(config)).eval()

    convert_to(monkeypatch, fake)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{task: segmentation, model: {name: piip_nano}, segmenter: {channels: 8, crop_size: 96}}"
    )
    out = tmp_path / "out"
    assert (
        main(
            [
                "convert",
                "official.pth",
                str(out),
                "--recipe",
                str(recipe),
            ]
        )
        == 2
    )
    recipe.write_text("{task: segmentation, model: {name: piip_nano}, segmenter: {channels: 8}}")
    assert main(["convert", "official.pth", str(out), "--recipe", str(recipe)]) == 0
    seen = load(out).predict(torch.zeros(3, 96, 128, dtype=torch.uint8))
    assert seen.labels.shape == (96, 128)
    assert sum(seen.shares().values()) == pytest.approx(1)


def test_a_released_classifier_becomes_a_folder_that_predicts(monkeypatch, tmp_path):
    def fake(path, config, head):
        assert head is None
        maps = config.replace(merging=MergingConfig("none", pyramid_levels=()))
        return ImageClassifier(ClassifierConfig(1000), PIIP(maps)).eval()

    convert_to(monkeypatch, fake)
    (tmp_path / "recipe.yaml").write_text(
        "{task: classification, model: {name: piip_nano}, image: {scale: [64, 64]}}"
    )
    out = tmp_path / "out"
    assert main(["convert", "official.pth", str(out), "--recipe", str(tmp_path / "recipe.yaml")]) == 0
    predictor = load(out)
    assert len(set(predictor.classes)) == 1000
    assert predictor.classes[0] == "tench"
    assert predictor.image.scale == (64, 64)
    seen = predictor.predict(torch.zeros(3, 96, 128, dtype=torch.uint8))
    assert len(seen.top()) == 5


def test_a_network_alone(monkeypatch, tmp_path):
    convert_to(monkeypatch, lambda path, config: create_model("piip_nano"))
    assert main(["convert", "official.pth", str(tmp_path / "out"), "--model", "piip_nano"]) == 0
    assert isinstance(from_pretrained(tmp_path / "out"), PIIP)


def test_a_missing_file_is_one_sentence(tmp_path, capsys):
    assert main(["convert", "nowhere.pth", str(tmp_path / "out"), "--model", "piip_nano"]) == 2
    assert "nowhere.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
