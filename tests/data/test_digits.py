import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as tools

from piip.data import digits, scenes
from piip.data.check import check_detection
from piip.data.coco import DetectionDataset
from piip.data.digits import make_digits
from piip.data.settings import AugmentConfig, ImageConfig
from piip.errors import ConfigError, DataError, MissingExtraError, PiipError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp("made") / "digits", 6, 3, size=256, seed=1)


def load(layout, split):
    return json.loads(layout.split(split).annotations.read_text())


def test_it_is_a_clean_coco_data_set(made):
    report = check_detection(made)
    assert not [problem for problem in report.problems if problem.what != "categories never used"]
    assert report.splits["train"].images == 6
    assert report.splits["val"].images == 3
    assert list(report.splits["train"].classes) == list("0123456789")
    dataset = DetectionDataset(made.split("train"), ImageConfig(scale=(300, 300)), AugmentConfig())
    assert len(dataset) == 6
    assert dataset[0][1]["masks"].any(-1).any(-1).all()


def test_boxes_and_areas_are_those_of_the_masks(made):
    for entry in load(made, "train")["annotations"]:
        assert tools.toBbox(entry["segmentation"]).tolist() == entry["bbox"]
        assert int(tools.area(entry["segmentation"])) == entry["area"]


def test_objects_are_many_sized_mostly_small_and_apart(made):
    raw = load(made, "train")
    heights = np.array([entry["bbox"][3] for entry in raw["annotations"]])
    assert len(heights) > 6 * 4
    assert heights.min() < 20
    assert 60 < heights.max() <= scenes.LARGEST
    assert np.median(heights) < heights.max() / 2
    shapes = {(image["height"], image["width"]) for image in raw["images"]}
    assert len(shapes) == 6
    for height, width in shapes:
        assert height * width == pytest.approx(256**2, rel=0.02)
        assert 0.74 < height / width < 1.34
    for image in raw["images"]:
        own = [entry["segmentation"] for entry in raw["annotations"] if entry["image_id"] == image["id"]]
        assert tools.decode(own).sum(-1).max() == 1


def test_digits_stand_out_from_the_photograph(made):
    for image in load(made, "val")["images"]:
        pixels = np.asarray(Image.open(made.split("val").images / image["file_name"]).convert("L"), float)
        for entry in load(made, "val")["annotations"]:
            if entry["image_id"] == image["id"] and entry["area"] > 400:
                mask = tools.decode(entry["segmentation"]).astype(bool)
                x, y, w, h = entry["bbox"]
                around = np.zeros_like(mask)
                around[max(0, y - 4) : y + h + 4, max(0, x - 4) : x + w + 4] = True
                spread = abs(pixels[mask] - np.median(pixels[around & ~mask]))
                assert np.percentile(spread, 80) > 20


def test_the_seed_decides_and_a_larger_set_begins_with_a_smaller(tmp_path, made):
    again = make_digits(tmp_path / "again", 2, 1, size=256, seed=1)
    other = make_digits(tmp_path / "other", 1, 1, size=256, seed=2)

    def content(layout, split, name):
        return (layout.split(split).images / name).read_bytes()

    for name in ("000001.jpg", "000002.jpg"):
        assert content(again, "train", name) == content(made, "train", name)
    assert content(other, "train", "000001.jpg") != content(made, "train", "000001.jpg")
    assert content(made, "val", "000001.jpg") != content(made, "train", "000001.jpg")


def test_train_and_val_share_neither_digits_nor_photographs():
    train, val = (scenes.load_material(split) for split in ("train", "val"))
    for own, other in zip(train.glyphs, val.glyphs, strict=True):
        assert len(own) > 100
        assert len(other) > 25
        assert not {glyph.tobytes() for glyph in own} & {glyph.tobytes() for glyph in other}
    assert not {photo.tobytes() for photo in train.photos} & {photo.tobytes() for photo in val.photos}


def test_same_parameters_are_reused_and_others_replace(tmp_path):
    folder, calls = tmp_path / "digits", []
    make_digits(folder, 2, 1, 96, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    before = os.stat(folder / "train/000001.jpg")
    make_digits(folder, 2, 1, 96, progress=lambda *_: pytest.fail("made again"))
    assert os.stat(folder / "train/000001.jpg") == before
    assert len(load(make_digits(folder, 1, 1, 96), "train")["images"]) == 1
    assert os.listdir(tmp_path) == ["digits"]


def test_two_processes_may_make_the_same(tmp_path):
    def race(done, total):
        if done == total:
            make_digits(tmp_path / "digits", 2, 1, 96)

    layout = make_digits(tmp_path / "digits", 2, 1, 96, progress=race)
    assert len(load(layout, "train")["images"]) == 2
    assert os.listdir(tmp_path) == ["digits"]


def test_nothing_half_made_stays(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "digits", 2, 1, 96, progress=stop)
    assert os.listdir(tmp_path) == []


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="already holds something else"):
        make_digits(tmp_path, 1, 1, 96)
    with pytest.raises(DataError, match="already holds something else"):
        make_digits(tmp_path / "thesis.txt", 1, 1, 96)
    with pytest.raises(PiipError, match="Cannot write"):
        make_digits(tmp_path / "thesis.txt" / "digits", 1, 1, 96)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("bad", [{"num_val": 0}, {"size": 20}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path, bad):
    with pytest.raises(ConfigError, match="at least one image"):
        make_digits(tmp_path / "digits", **bad)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'piip\[digits\]'"):
        make_digits(tmp_path / "digits", 1, 1, 96)
    assert os.listdir(tmp_path) == []
    assert tuple("0123456789") == digits.CLASSES
