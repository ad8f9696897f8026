import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as tools

from piip.data.outlines import Outlines, compress, usable_polygons
from piip.errors import DataError
from tests.data.builders import box_polygon

SIZE = (30, 40)


def test_masks_of_every_form_agree():
    box = [5, 4, 12, 10]
    expected = np.zeros(SIZE, np.uint8)
    expected[4:14, 5:17] = 1
    run = tools.encode(np.asfortranarray(expected))
    counts = tools.frPyObjects([box_polygon(*box)], *SIZE)[0]["counts"]
    flat = expected.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat, [0]))))
    listed = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    forms = [
        [box_polygon(*box)],
        {"size": list(SIZE), "counts": run["counts"].decode()},
        {"size": list(SIZE), "counts": counts},
        {"size": list(SIZE), "counts": listed},
    ]
    outlines = Outlines.build(forms, [SIZE] * len(forms))
    for mask in outlines.masks(range(len(forms)), SIZE):
        np.testing.assert_array_equal(mask, expected)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(-5, 45), min_size=6, max_size=14), min_size=1, max_size=3))
def test_polygons_equal_pycocotools(polygons):
    polygons = [polygon[: len(polygon) // 2 * 2] for polygon in polygons]
    outlines = Outlines.build([None, polygons, [[1, 1, 2, 2]]], [SIZE] * 3)
    expected = tools.decode(tools.merge(tools.frPyObjects(polygons, *SIZE)))
    np.testing.assert_array_equal(outlines.masks([1], SIZE)[0], expected)
    assert outlines.to_coco(1, SIZE) == polygons
    assert [index in outlines for index in range(3)] == [False, True, False]


def test_nothing_to_rasterise():
    assert Outlines.build([], []).masks([], SIZE).shape == (0, *SIZE)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [1200]},
        {"size": [40, 30], "counts": [1200]},
        {"size": [30, 40], "counts": [5, 5]},
        {"size": [30, 40]},
        [1.0, 2.0, 3.0],
        "polygon",
    ],
)
def test_bad_segmentations_are_refused(segmentation):
    with pytest.raises(DataError):
        Outlines.build([segmentation], [SIZE])


def test_degenerate_polygons_are_no_boxes():
    assert usable_polygons([[1, 1, 5, 5], [1, 1, 5], [1, 1, 5, 1, 5, 5]])[0].tolist() == [1, 1, 5, 1, 5, 5]


def test_crowds_of_coco(shared):
    raw = json.loads((shared / "data/coco_tiny/annotations/instances_val.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in raw["images"]}
    crowds = [entry for entry in raw["annotations"] if entry["iscrowd"]]
    assert len(crowds) == 5
    for entry in crowds:
        size = sizes[entry["image_id"]]
        counts = entry["segmentation"]["counts"]
        assert len(compress(entry["segmentation"], size)) < 8 * len(counts)
        outlines = Outlines.build([entry["segmentation"]], [size])
        assert outlines.masks([0], size).sum() == sum(counts[1::2])
