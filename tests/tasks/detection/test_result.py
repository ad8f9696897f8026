"""What prediction gives back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from piip.errors import DataError
from piip.tasks.detection import Detections, Instances
from piip.tasks.detection.draw import MIN_SIDE, class_colour

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = (60, 80)


def rle(top, left, height, width):
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    encoded = coco_mask.encode(mask)
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


@pytest.fixture
def instances():
    return Instances(
        boxes=torch.tensor([[10.0, 20.0, 40.0, 50.0], [0.0, 0.0, 8.0, 8.0], [70.0, 1.0, 80.0, 60.0]]),
        scores=torch.tensor([0.9, 0.6, 0.2]),
        labels=torch.tensor([1, 0, 1]),
        masks=[rle(20, 10, 30, 30), rle(0, 0, 8, 8), rle(1, 70, 59, 10)],
        original_size=SIZE,
    )


@pytest.fixture
def detections(instances, tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), (128, 128, 128)).save(path)
    return Detections(instances, ("cat", "dog"), (17, 18), path, image_id=42)


def test_coco_results(detections):
    entries = detections.to_coco()
    assert json.loads(json.dumps(entries)) == entries
    assert [e["category_id"] for e in entries] == [18, 17, 18]
    assert {e["image_id"] for e in entries} == {42}
    assert entries[0]["bbox"] == [10, 20, 30, 30]
    assert entries[0]["score"] == pytest.approx(0.9)
    assert coco_mask.area(dict(entries[0]["segmentation"])) == 900


def test_coco_results_without_masks(instances):
    entries = Detections(Instances(*vars(instances).values()).filter(0.5), ("cat", "dog")).to_coco()
    assert [e["category_id"] for e in entries] == [2, 1]
    boxes_only = Instances(instances.boxes, instances.scores, instances.labels, None, SIZE)
    assert all("segmentation" not in e for e in Detections(boxes_only, ("cat", "dog")).to_coco())


def test_filter_keeps_masks_with_their_objects(detections):
    kept = detections.filter(0.5)
    assert len(kept) == 2
    assert kept.names() == ["dog", "cat"]
    assert kept.instances.masks == detections.instances.masks[:2]
    assert len(detections.filter(0.95)) == 0


def test_class_names_and_categories_belong_together(instances):
    with pytest.raises(DataError, match="1 category_ids for 2 class names"):
        Detections(instances, ("cat", "dog"), (3,))


def test_plot_marks_objects_only(detections, tmp_path):
    picture = detections.plot(tmp_path / "out.png")
    assert max(picture.size) == MIN_SIDE
    with Image.open(tmp_path / "out.png") as written:
        assert written.size == picture.size
    factor = MIN_SIDE / 80
    pixels = np.asarray(picture)
    background = pixels[int(55 * factor), int(55 * factor)]
    assert background.tolist() == [128, 128, 128]
    tinted = pixels[int(40 * factor), int(30 * factor)].astype(float)
    assert np.abs(tinted - (128 * 0.6 + np.array(class_colour(1)) * 0.4)).max() <= 2


def test_large_images_keep_their_size(instances):
    image = Image.new("RGB", (1600, 1200))
    big = Instances(instances.boxes * 20, instances.scores, instances.labels, None, (1200, 1600))
    assert Detections(big, ("cat", "dog")).plot(image=image).size == (1600, 1200)


def test_nothing_found_leaves_the_image(detections):
    picture = np.asarray(detections.filter(0.99).plot())
    assert (picture == 128).all()


def test_plot_needs_the_image_that_was_searched(instances, tmp_path):
    nowhere = Detections(instances, ("cat", "dog"))
    with pytest.raises(DataError, match="knows no image file"):
        nowhere.plot()
    with pytest.raises(DataError, match="60 x 80"):
        nowhere.plot(image=Image.new("RGB", (60, 80)))
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        Detections(instances, ("cat", "dog"), path=tmp_path / "gone.png").plot()


def test_classes_have_colours_of_their_own():
    assert len({class_colour(label) for label in range(80)}) == 80
    first = np.array([class_colour(label) for label in range(12)], np.float32)
    apart = np.linalg.norm(first[:, None] - first[None], axis=2) + 999 * np.eye(12)
    assert apart.min() > 60, "of few classes, no two look alike"


@pytest.mark.filterwarnings("ignore")
def test_supervision(detections):
    supervision = pytest.importorskip("supervision")
    converted = detections.to_supervision()
    assert isinstance(converted, supervision.Detections)
    assert converted.mask.sum((1, 2)).tolist() == [900, 64, 590]
    assert list(converted.data["class_name"]) == ["dog", "cat", "dog"]


def test_a_notebook_shows_what_there_is(detections):
    shown = repr(detections)
    assert shown.startswith("Detections(")
    assert detections.summary() in shown
    assert len(shown) < 200


def test_scores_can_be_left_out(detections):
    assert detections.plot().tobytes() != detections.plot(scores=False).tobytes()
