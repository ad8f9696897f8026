import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from piip.train.average_precision import AREAS, RECALLS, THRESHOLDS, _areas, precision_recall

IMAGES = (7, 3, 12)


def crowded(seed: int) -> tuple[list[dict], list[dict]]:
    """Objects of all sizes, crowds among them, and detections with equal scores and several for one object."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for image in IMAGES:
        for _ in range(random.integers(0, 7)):
            box = [*random.uniform(0, 60, 2), *random.choice([9.0, 31.0, 33.0, 97.0], 2)]
            crowd = int(random.random() < 0.25)
            entry = {"id": len(truth) + 1, "image_id": image, "category_id": 1, "iscrowd": crowd, "bbox": box}
            truth.append(entry | {"area": box[2] * box[3] * random.choice([0.4, 1.0])})
            for _ in range(random.integers(0, 4)):
                near = (np.array(box) + random.normal(0, 4, 4)).clip(1).tolist()
                score = float(random.integers(1, 6)) / 5
                found.append({"image_id": image, "category_id": 1, "bbox": near, "score": score})
    return truth, found


def by_image(entries: list[dict]) -> dict[int, list[dict]]:
    images: dict[int, list[dict]] = {}
    for entry in entries:
        images.setdefault(entry["image_id"], []).append(entry)
    return images


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 100]))
def test_equal_to_pycocotools(seed, limit):
    truth, found = crowded(seed)
    precision, recall = precision_recall(by_image(truth), by_image(found), "bbox", limit)
    if not found:
        assert set(np.unique(precision)) <= {-1.0, 0.0}
        return
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": image, "height": 200, "width": 200} for image in IMAGES]
        categories = [{"id": 1, "name": "thing"}]
        coco.dataset = {"images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes([dict(f) for f in found]), "bbox")
        run.params.maxDets = [limit]
        run.evaluate()
        run.accumulate()
    np.testing.assert_allclose(precision, run.eval["precision"][:, :, 0, :, 0], rtol=1e-12)
    np.testing.assert_allclose(recall, run.eval["recall"][:, 0, :, 0], rtol=1e-12)
    assert np.array_equal(run.params.iouThrs, THRESHOLDS)
    assert np.array_equal(run.params.recThrs, RECALLS)
    assert [(low, high) for low, high in run.params.areaRng] == list(AREAS.values())


@pytest.mark.parametrize("found", [{}, {1: [{"bbox": [0, 0, 5, 5], "score": 1.0}]}])
def test_a_class_without_objects_has_no_precision(found):
    precision, recall = precision_recall({}, found, "bbox", 100)
    assert (precision == -1).all()
    assert (recall == -1).all()


@pytest.mark.parametrize("count", [0, 1, 255, 256, 600])
def test_any_number_of_masks_has_areas(count):
    pixels = np.arange(40 * 40).reshape(40, 40)
    found = [{"segmentation": mask.encode(np.asfortranarray(pixels < n, np.uint8))} for n in range(count)]
    assert _areas(found, "segm").tolist() == list(range(count))
