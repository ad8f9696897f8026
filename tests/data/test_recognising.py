"""Telling the tasks of data from their folders."""

import pytest
from PIL import Image

from piip.cli import main
from piip.data.recognising import recognise_tasks
from tests.data.builders import write_coco


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def pairs(folder, images, masks):
    picture(folder / images / "a.png")
    picture(folder / masks / "a.png")


def yolo(folder):
    picture(folder / "images/train/a.jpg")
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat]\n")


def table(folder):
    (folder / "train.csv").write_text("file,label\na.png,cat\n")


def talks(folder):
    (folder / "train.json").write_text('[{"id": "1", "conversations": []}]')


@pytest.mark.parametrize(
    ("build", "tasks"),
    [
        (write_coco, ["detection"]),
        (yolo, ["detection"]),
        (lambda folder: pairs(folder, "images/train", "masks/train"), ["segmentation"]),
        (lambda folder: pairs(folder, "train/images", "train/labels"), ["segmentation"]),
        (lambda folder: pairs(folder, "images/training", "annotations/training"), ["segmentation"]),
        (lambda folder: pairs(folder, "leftImg8bit/train/x", "gtFine/train/x"), ["segmentation"]),
        (lambda folder: pairs(folder, "train/cat", "train/dog"), ["classification"]),
        (table, ["classification"]),
        (talks, ["multimodal"]),
        (lambda folder: picture(folder / "a.png"), []),
        (lambda folder: (write_coco(folder), talks(folder)), ["detection", "multimodal"]),
    ],
)
def test_tasks_are_told_from_the_folder(build, tasks, tmp_path):
    build(tmp_path)
    assert recognise_tasks(tmp_path) == tasks


def test_a_file_is_recognised_by_what_it_holds(tmp_path):
    talks(tmp_path)
    assert recognise_tasks(tmp_path / "train.json") == ["multimodal"]
    coco = write_coco(tmp_path / "coco")
    assert recognise_tasks(next(coco.glob("annotations/*.json"))) == ["detection"]
    assert recognise_tasks(tmp_path / "nowhere") == []


def test_what_else_is_there_is_said(tmp_path, capsys):
    write_coco(tmp_path)
    talks(tmp_path)
    main(["check-data", str(tmp_path)])
    said = "Checked for the task detection; say --task multimodal for what else is there."
    assert said in capsys.readouterr().out
