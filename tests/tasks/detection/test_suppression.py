"""Suppression of detections against its definition, one box at a time."""

import math

import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from piip.errors import ConfigError
from piip.tasks.detection import RCNN, RCNNConfig
from piip.tasks.detection.suppression import suppress
from tests.tasks.detection.toy import SMALL, TinyBackbone

KINDS = ["hard", "linear", "gaussian"]


def config(**changes):
    return RCNNConfig(**(SMALL | changes))


def candidates(count, classes, seed=0):
    """Boxes in heaps, so that most overlap some other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count // 6 + 1, 2, generator=generator) * 200
    centre = centres[torch.randint(len(centres), (count,), generator=generator)]
    centre = centre + torch.randn(count, 2, generator=generator) * 6
    half = 10 + torch.rand(count, 2, generator=generator) * 20
    scores = torch.rand(count, generator=generator).clamp(min=0.05)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.cat([centre - half, centre + half], 1), scores, labels


def plain_soft_nms(boxes, scores, labels, factor, threshold, limit):
    """Soft-NMS as the paper states it, for each class by itself, in Python's numbers."""
    overlaps = box_iou(boxes, boxes).tolist()
    found = []
    for label in set(labels.tolist()):
        left = {i: float(scores[i]) for i in (labels == label).nonzero()[:, 0].tolist()}
        while left:
            best = max(left, key=left.get)
            score = left.pop(best)
            if score < threshold or score == 0:
                continue
            found.append((score, best))
            left = {i: s * factor(overlaps[best][i]) for i, s in left.items()}
    return sorted(found, reverse=True)[:limit]


FACTORS = {
    "linear": lambda iou: 1 - iou if iou >= 0.4 else 1.0,
    "gaussian": lambda iou: math.exp(-(iou**2) / 0.3),
}


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
@pytest.mark.parametrize(
    ("count", "classes", "threshold", "limit"),
    [(1, 1, 0.001, 100), (60, 1, 0.001, 100), (200, 5, 0.05, 100), (200, 5, 0.0, 20), (90, 40, 0.2, 100)],
)
def test_soft_suppression_is_that_of_the_definition(kind, count, classes, threshold, limit):
    boxes, scores, labels = candidates(count, classes, seed=count)
    settings = config(
        nms=0.4,
        nms_kind=kind,
        soft_nms_sigma=0.3,
        soft_nms_threshold=threshold,
        detections_per_image=limit,
    )
    index, lowered = suppress(boxes, scores, labels, settings)
    expected = plain_soft_nms(boxes, scores, labels, FACTORS[kind], threshold, limit)
    assert index.tolist() == [i for _, i in expected]
    torch.testing.assert_close(lowered, torch.tensor([score for score, _ in expected]))
    assert len(index) < count or count == 1


def test_hard_suppression_is_torchvisions():
    boxes, scores, labels = candidates(200, 5)
    index, kept = suppress(boxes, scores, labels, config(detections_per_image=50))
    expected = batched_nms(boxes, scores, labels, 0.5)[:50]
    assert torch.equal(index, expected)
    assert torch.equal(kept, scores[expected])


@pytest.mark.parametrize("kind", KINDS)
def test_twins_and_nothing(kind):
    settings = config(nms_kind=kind, soft_nms_threshold=0.0)
    none = suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), settings)
    assert [len(values) for values in none] == [0, 0]
    twins = torch.tensor([[0.0, 0, 10, 10]] * 3)
    index, scores = suppress(twins, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 0, 1]), settings)
    assert index.tolist() == ([1, 2, 0] if kind == "gaussian" else [1, 2])
    assert scores[:2].tolist() == pytest.approx([0.9, 0.7])
    if kind == "gaussian":
        assert float(scores[2]) == pytest.approx(0.5 * math.exp(-1 / 0.5))


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_a_built_detector_can_change_its_suppression(kind):
    torch.manual_seed(1)
    model = RCNN(config(masks=False, score_threshold=0.0, nms=0.1), TinyBackbone()).eval()
    image = torch.randn(3, 64, 96)
    hard = model([image])[0]
    model.config = model.config.replace(nms_kind=kind)
    soft = model([image])[0]
    assert torch.equal(soft.boxes[0], hard.boxes[0])
    assert (soft.scores.diff() <= 0).all()
    assert not torch.equal(soft.scores, hard.scores)
    model.config = model.config.replace(nms_kind="hard")
    assert torch.equal(model([image])[0].scores, hard.scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nms_kind": "soft"}, "nms_kind is 'soft'; give one of 'hard', 'linear', 'gaussian'"),
        ({"soft_nms_sigma": 0}, "soft_nms_sigma is 0.0; give a number above 0"),
        ({"soft_nms_threshold": 2}, "soft_nms_threshold is 2.0; give a number from 0 to 1"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)
