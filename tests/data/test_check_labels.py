"""Checks of images with masks and of images with classes."""

import shutil

import numpy as np
import pytest
from PIL import Image

from piip.cli import main
from piip.data.check_labels import check_classification, check_segmentation
from tests.data.builders import write_images
from tests.data.test_segmentation import SIZES, write_masks


@pytest.fixture
def masks(tmp_path):
    for number, split in enumerate(("train", "val")):
        write_images(tmp_path / "images" / split, SIZES, seed=number)
        write_masks(tmp_path / "masks" / split, SIZES, (0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path


@pytest.fixture
def classes(tmp_path):
    for number, (split, name) in enumerate((s, n) for s in ("train", "val") for n in ("cat", "dog")):
        names = {f"{k}.png": (20, 30) for k in range(12 if name == "cat" else 5)}
        write_images(tmp_path / split / name, names, seed=number)
    return tmp_path


def kinds(report):
    return {(problem.severity, problem.what) for problem in report.problems}


def test_a_good_data_set_has_no_problems(masks):
    report = check_segmentation(masks)
    assert report.ok
    assert not report.problems
    pixels = sum(height * width for height, width in SIZES.values())
    assert sum(report.splits["train"].classes.values()) == pixels * 3 // 4
    assert "train: 2 images, pixels by class" in report.lines()


def test_masks_of_wrong_size_damaged_or_void(masks):
    write_masks(masks / "masks" / "train", {"a.png": (10, 10)}, (255,))
    (masks / "masks" / "val" / "b.png").write_bytes(b"no image")
    report = check_segmentation(masks)
    assert not report.ok
    assert kinds(report) >= {
        ("error", "masks of another size than their image"),
        ("error", "files that cannot be used"),
        ("warning", "masks that are mostly without a class"),
    }


def test_absent_classes_and_images_in_two_splits(masks):
    (masks / "classes.txt").write_text("sky\nroad\ncar\nboat\n")
    shutil.copy(masks / "images" / "train" / "a.png", masks / "images" / "val" / "a.png")
    found = kinds(check_segmentation(masks))
    assert found == {("warning", "classes without a pixel"), ("warning", "the same image in two splits")}


def test_classes(classes):
    report = check_classification(classes)
    assert kinds(report) == {("warning", "classes with fewer than 10 images")}
    assert report.splits["train"].classes == {"cat": 12, "dog": 5}
    (classes / "val" / "dog" / "0.png").write_bytes(b"no image")
    (classes / "val" / "cow").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(classes / "val" / "cow" / "1.png")
    assert kinds(check_classification(classes)) >= {("error", "a split that cannot be used")}


def test_the_verb(masks, classes, capsys):
    assert main(["check-data", str(masks), "--task", "segmentation"]) == 0
    assert "Ready to train" in capsys.readouterr().out
    (masks / "masks" / "train" / "a.png").write_bytes(b"no image")
    assert main(["check-data", str(masks), "--task", "segmentation"]) == 2
    assert main(["check-data", str(classes), "--task", "classification"]) == 0
