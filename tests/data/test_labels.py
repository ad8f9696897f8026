"""Labels of pixels from the outlines of objects."""

import numpy as np
import pytest

from piip.data.check_labels import check_segmentation
from piip.data.mask_layout import find_masks
from piip.data.segmentation import SegmentationDataset
from piip.data.settings import ImageConfig
from piip.errors import DataError
from tests.data.builders import coco_raw, write_coco


@pytest.fixture
def folder(tmp_path):
    raw = coco_raw()
    slivers = (5, 6)  # half a pixel wide, and outside of the image
    raw["annotations"] = [entry for entry in raw["annotations"] if entry["id"] not in slivers]
    return write_coco(tmp_path, raw)


def test_objects_are_drawn_smaller_over_larger(folder):
    layout = find_masks(folder)
    assert layout.name == "COCO outlines"
    split = layout.split("train")
    assert split.classes == ("background", "cat", "dog", "zebra")
    names = [path.name for path in split.images]
    labels = split.labels(names.index("a.png"))
    expected = np.zeros((48, 64), np.uint8)
    expected[30:48, 0:25] = 2  # reaches over the border
    expected[:, 10:15] = 2  # a crowd is of its class, too
    expected[6:16, 4:24] = 3  # the smallest
    assert np.array_equal(labels, expected)
    image, truth, meta = SegmentationDataset(split, ImageConfig(scale=(64, 64)))[names.index("a.png")]
    assert np.array_equal(truth.numpy(), expected)
    assert truth.shape == meta.original_size
    assert image.shape == (3, 48, 64)


def test_chosen_classes_have_labels_in_their_order(folder):
    for classes in (("zebra", "cat"), ("background", "zebra", "cat")):
        split = find_masks(folder, classes).split("train")
        assert split.classes == ("background", "zebra", "cat")
        names = [path.name for path in split.images]
        assert set(np.unique(split.labels(names.index("a.png")))) == {0, 1}
        assert set(np.unique(split.labels(names.index("b.png")))) == {0, 2}
    with pytest.raises(DataError, match="has no class 'horse'"):
        find_masks(folder, ("horse",)).split("val")


def test_boxes_alone_are_refused(tmp_path):
    raw = coco_raw()
    raw["annotations"][0]["segmentation"] = []
    with pytest.raises(DataError, match=r"objects without an outline, the first in b\.png"):
        find_masks(write_coco(tmp_path, raw)).split("train")


def test_they_can_be_checked(folder):
    report = check_segmentation(folder)
    assert report.splits["train"].classes["zebra"] == 200


def test_nuclei_are_nuclei_or_not(shared):
    split = find_masks(shared / "data" / "nuclei_dsb2018").split("val")
    assert split.classes == ("background", "nucleus")
    share = np.mean([split.labels(index).mean() for index in range(len(split.images))])
    assert 0.1 < share < 0.3
