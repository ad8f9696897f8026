import numpy as np
import pytest

from piip.data.coco import DetectionDataset
from piip.data.index import read_index
from piip.data.layout import find_dataset
from piip.data.settings import AugmentConfig, ImageConfig
from piip.data.yolo import label_path, read_yolo
from piip.errors import DataError
from tests.data.builders import write_yolo


def test_boxes_and_polygons_in_pixels(tmp_path):
    source = find_dataset(write_yolo(tmp_path)).split("train")
    index = read_index(source)
    assert index.file_names == ("images/train/a.png", "images/train/b.png", "images/train/c.png")
    assert index.classes == ("cat", "dog")
    assert index.category_ids == (0, 1)
    np.testing.assert_allclose(index.boxes, [[24, 12, 16, 24], [5, 8, 40, 64]])
    np.testing.assert_allclose(index.areas, [384, 1280])
    assert [len(index.objects(k)) for k in range(3)] == [1, 1, 0]
    assert 0 not in index.outlines
    mask = index.outlines.masks([1], index.size(1))
    assert mask.sum() == pytest.approx(1280, rel=0.03)


def test_a_dataset_like_any_other(tmp_path):
    source = find_dataset(write_yolo(tmp_path)).split("train")
    dataset = DetectionDataset(source, ImageConfig(scale=(64, 64)), AugmentConfig(flip=0), masks=False)
    assert len(dataset) == 2
    image, target, meta = dataset[0]
    assert tuple(image.shape) == (3, 48, 64)
    assert target["labels"].tolist() == [1]
    assert meta.file_name == "images/train/a.png"
    with pytest.raises(DataError, match=r"1 of 2 objects have no outline, the first in images/train/a\.png"):
        DetectionDataset(source, ImageConfig(), AugmentConfig())


@pytest.mark.parametrize("yaml_train", ["../images/train", "train.txt", ["images/train"]])
def test_ways_to_name_the_images(tmp_path, yaml_train):
    (tmp_path / "train.txt").write_text("images/train/a.png\n./images/train/c.png\n")
    source = find_dataset(write_yolo(tmp_path, yaml_train=yaml_train)).split("train")
    assert len(read_index(source)) == (2 if yaml_train == "train.txt" else 3)


def test_label_paths_follow_the_last_images_folder(tmp_path):
    assert label_path(tmp_path / "images/x/images/y/a.b.png") == tmp_path / "images/x/labels/y/a.b.txt"
    assert label_path(tmp_path / "train/a.png") == tmp_path / "train/a.txt"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("2 0.5 0.5 0.2 0.2", "class 2 is not between 0 and 1"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5"),
        ("0 0.5 0.5 0.2", "expected 4 box numbers or 3 and more points, got 3"),
        ("0", "got 0"),
        ("0 0.5 nan 0.2 0.2", "expected"),
        ("cat 0.5 0.5 0.2 0.2", "expected a class and numbers"),
        ("0 320 240 20 20", "divided by the image size"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, text):
    source = find_dataset(write_yolo(tmp_path)).split("train")
    path = tmp_path / "labels/train/c.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match=rf"c\.txt line 2: .*{text}"):
        read_yolo(source)
    found = []
    raw = read_yolo(source, lambda *problem: found.append(problem))
    assert len(found) == 1
    assert len(raw["annotations"]) == 3


@pytest.mark.parametrize(
    ("names", "text"), [([], "needs names"), ({0: "a", 2: "b"}, "keys 0 to 1"), ("cat", "needs names")]
)
def test_bad_names(tmp_path, names, text):
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: {names}\n")
    with pytest.raises(DataError, match=text):
        read_yolo(find_dataset(tmp_path).split("train"))


def test_dict_of_names_wrong_count_and_missing_images(tmp_path):
    write_yolo(tmp_path)
    settings = "train: images/train\nval: images/none\nnames: {0: a, 1: b}\n"
    (tmp_path / "data.yaml").write_text(settings)
    assert read_index(find_dataset(tmp_path).split("train")).classes == ("a", "b")
    with pytest.raises(DataError, match="neither an image folder nor a text file"):
        read_yolo(find_dataset(tmp_path).split("val"))
    (tmp_path / "data.yaml").write_text(settings + "nc: 3\n")
    with pytest.raises(DataError, match="nc: 3 but names 2"):
        read_yolo(find_dataset(tmp_path).split("train"))
