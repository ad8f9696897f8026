import json
from pathlib import Path

import pytest

from piip.data.layout import find_dataset
from piip.errors import DataError
from tests.data.builders import write_coco, write_yolo


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train.json", "train"),
        ("annotations/train.json", "train"),
        ("annotations/train.json", "images"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_layouts_with_json(tmp_path, annotations, images):
    (tmp_path / images).mkdir(parents=True)
    path = tmp_path / annotations
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    layout = find_dataset(tmp_path)
    assert list(layout.splits) == ["train"]
    source = layout.split("train")
    assert (source.kind, source.annotations, source.images) == ("coco", path, tmp_path / images)
    assert layout.name == ("Roboflow" if "_annotations" in annotations else "COCO")
    with pytest.raises(DataError, match=r"has no val split; found: train"):
        layout.split("val")


def test_roboflow_calls_validation_valid(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "_annotations.coco.json").write_text("{}")
    assert {k: v.images.name for k, v in find_dataset(tmp_path).splits.items()} == {
        "train": "train",
        "val": "valid",
        "test": "test",
    }


def test_yolo(tmp_path):
    layout = find_dataset(write_yolo(tmp_path))
    assert layout.name == "YOLO"
    assert list(layout.splits) == ["train", "val"]
    assert layout.split("val").images == tmp_path
    assert find_dataset(tmp_path / "data.yaml").splits == layout.splits


def test_single_json(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations/train.json"
    source = find_dataset(path, tmp_path / "train", split="val").split("val")
    assert (source.annotations, source.images) == (path, tmp_path / "train")
    assert find_dataset(path).split("train").images == path.parent
    with pytest.raises(DataError, match=r"nowhere of .* does not exist"):
        find_dataset(path, tmp_path / "nowhere")


def test_what_was_looked_for_is_listed(tmp_path):
    with pytest.raises(DataError, match=r"instances_train2017.*_annotations\.coco\.json.*data\.yaml"):
        find_dataset(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_dataset(tmp_path / "nothing")


def test_json_without_images_is_named(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text("{}")
    with pytest.raises(DataError, match=r"train\.json has no image folder beside it; expected .*train"):
        find_dataset(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("[1", "not valid YAML"), ("- 1", "keys"), ("nc: 2", "train")])
def test_bad_yaml(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        find_dataset(tmp_path)


@pytest.mark.parametrize("name", ["bccd", "nuclei_dsb2018", "coco_tiny"])
def test_real_sets(shared, name):
    layout = find_dataset(shared / "data" / name)
    assert layout.name == "COCO"
    for split in ("train", "val"):
        source = layout.split(split)
        first = json.loads(source.annotations.read_text())["images"][0]["file_name"]
        assert (source.images / Path(first)).is_file()
