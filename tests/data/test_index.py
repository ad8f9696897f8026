import copy
import json

import numpy as np
import pytest

from piip.data.index import build_index, read_index
from piip.data.layout import SplitSource, find_dataset
from piip.errors import DataError
from tests.data.builders import annotation, coco_raw, write_coco


def build(raw, root="."):
    return build_index(raw, "some.json", root)


def test_objects_are_sorted_by_image_and_categories_by_id():
    index = build(coco_raw())
    assert index.category_ids == (3, 7, 90)
    assert index.classes == ("cat", "dog", "zebra")
    assert [index.size(k) for k in range(4)] == [(48, 64), (80, 50), (40, 40), (20, 100)]
    assert [len(index.objects(k)) for k in range(4)] == [5, 1, 0, 1]
    first = index.objects(0)
    assert index.categories[first].tolist() == [2, 1, 1, 0, 0]
    assert index.crowd[first].tolist() == [False, False, True, False, False]
    assert index.boxes[index.objects(1)].tolist() == [[10, 20, 20, 30]]


def test_missing_parts_are_derived(tmp_path):
    raw = coco_raw()
    raw["annotations"] = [
        annotation(1, 20, 3, [10, 20, 20, 30], bbox=..., area=...),
        annotation(2, 20, 3, [1, 2, 3, 4], iscrowd=..., segmentation=..., id=..., area=None),
    ]
    for image in raw["images"]:
        del image["height"], image["width"]
    index = read_index(find_dataset(write_coco(tmp_path, raw)).split("train"))
    assert index.boxes.tolist() == [[10, 20, 20, 30], [1, 2, 3, 4]]
    assert index.areas.tolist() == [600, 12]
    assert index.size(1) == (80, 50)
    assert 1 not in index.outlines


def test_a_test_set_has_no_annotations(tmp_path):
    raw = coco_raw()
    del raw["annotations"]
    index = read_index(find_dataset(write_coco(tmp_path, raw)).split("train"))
    assert len(index) == 4
    assert index.boxes.shape == (0, 4)


def change(path, value):
    def apply(raw):
        *parents, last = path
        for key in parents:
            raw = raw[key]
        raw[last] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (change(["annotations", 0, "image_id"], 99), "1 annotations name images it lacks, the first is 99"),
        (change(["annotations", 0, "category_id"], 4), "1 annotations have categories it lacks, .* is 4"),
        (change(["images", 1, "id"], 10), "image id 10 is used 2 times"),
        (change(["categories", 1, "id"], 90), "category id is used twice"),
        (change(["annotations", 0], {"image_id": 10, "category_id": 3}), "lacks the key 'bbox'"),
        (change(["annotations", 0, "bbox"], [1, 2, 3, float("nan")]), "annotation 1 has the box"),
        (change(["annotations", 0, "bbox"], [1, 2, 3]), "does not follow the COCO format"),
        (change(["annotations", 3, "segmentation", "size"], [9, 9]), r"an RLE has size \[9, 9\]"),
        (change(["images", 0], {"id": 10}), "lacks the key 'file_name'"),
    ],
)
def test_contradictions_are_named(edit, text):
    raw = copy.deepcopy(coco_raw())
    edit(raw)
    with pytest.raises(DataError, match=f"some.json.*{text}"):
        build(raw)


def test_unreadable_files_are_named(tmp_path):
    source = SplitSource("train", "coco", tmp_path / "a.json", tmp_path)
    with pytest.raises(DataError, match=r"a\.json do not exist"):
        read_index(source)
    for text, message in (
        ("{", "not a readable json"),
        ("[]", "lacks lists of images and annotations and categories"),
    ):
        source.annotations.write_text(text)
        with pytest.raises(DataError, match=message):
            read_index(source)


def test_unknown_class_names_the_nearest():
    with pytest.raises(DataError, match=r"no class 'zebre'. Did you mean 'zebra'"):
        build(coco_raw()).positions(["cat", "zebre"])


@pytest.mark.parametrize(
    ("name", "images", "objects", "classes"),
    [("bccd", 205, 2804, 3), ("nuclei_dsb2018", 150, 6493, 1), ("coco_tiny", 50, 470, 80)],
)
def test_real_sets(shared, name, images, objects, classes):
    index = read_index(find_dataset(shared / "data" / name).split("train"))
    assert (len(index), len(index.boxes), len(index.classes)) == (images, objects, classes)
    raw = json.loads(index.source.read_text())
    by_image = {image_id: k for k, image_id in enumerate(index.image_ids.tolist())}
    for entry in raw["annotations"][:: max(1, objects // 50)]:
        own = index.objects(by_image[entry["image_id"]])
        assert np.any(np.all(index.boxes[own] == entry["bbox"], axis=1) & (index.areas[own] == entry["area"]))
