"""Sampling, losses and gradients against the original (golden/heads/maskrcnn_train)."""

import pytest
import torch

from tests.helpers import official_heads
from tests.tasks.detection.golden import assert_close, detector, load, unpack

SIZES = [(213, 287), (161, 250)]
PADDED = [(224, 288), (192, 256)]
LOSSES = {
    "loss_rpn_cls": "loss_rpn_cls",
    "loss_rpn_box": "loss_rpn_bbox",
    "loss_cls": "loss_cls",
    "loss_box": "loss_bbox",
    "loss_mask": "loss_mask",
}


@pytest.fixture(scope="module")
def golden(shared):
    return load(shared, "maskrcnn_train")


@pytest.fixture(scope="module")
def model(shared):
    return detector(shared).train()


@pytest.fixture(scope="module")
def targets(golden):
    return [
        {
            "boxes": golden[f"gt_boxes.{i}"],
            "labels": golden[f"gt_labels.{i}"],
            "masks": unpack(golden[f"gt_masks.{i}"], PADDED[i][1])[:, : SIZES[i][0], : SIZES[i][1]],
        }
        for i in range(2)
    ]


def test_losses_and_gradients(golden, model, targets):
    model.zero_grad()
    maps = [x.clone().requires_grad_() for x in model.backbone.maps]
    model.backbone.maps = maps
    torch.manual_seed(123)
    losses = model([torch.zeros(3, *size) for size in SIZES], targets)
    assert set(losses) == set(LOSSES)
    for ours, theirs in LOSSES.items():
        assert_close(losses[ours].detach(), golden[f"loss.{theirs}"])
    total = sum(losses.values())
    assert_close(total.detach(), golden["loss.total"])
    total.backward()
    gradients = official_heads({n: p.grad for n, p in model.named_parameters()})
    assert {f"gradnorm.{name}" for name in gradients} == {k for k in golden if k.startswith("gradnorm.")}
    for name, gradient in gradients.items():
        assert_close(gradient.norm(), golden[f"gradnorm.{name}"], 1e-4)
        if f"grad.{name}" in golden:
            assert_close(gradient, golden[f"grad.{name}"], 1e-4)
    assert_close(maps[3].grad, golden["grad.input.3"], 1e-4)


@torch.no_grad()
def test_samples_of_both_stages(golden, model, targets):
    pyramid = model.pyramid(model.backbone.maps)
    output = model.rpn(pyramid)
    anchors = torch.cat(output.anchors)
    torch.manual_seed(123)
    encoded = []
    for image in range(2):
        boxes = targets[image]["boxes"]
        (positive, negative), matched = model.rpn.sample(output, SIZES[image], PADDED[image], boxes)
        flat = golden["rpn.pos_flat_index"]
        assert torch.equal(positive, flat[flat[:, 0] == image, 1])
        assert torch.equal(matched, golden[f"rpn.pos_assigned.{image}"])
        assert len(negative) == len(golden[f"rpn.neg_inds.{image}"])
        encoded.append(model.rpn.coder.encode(anchors[positive], boxes[matched]))
        weights = torch.cat([golden[f"rpn.label_weights.{level}"][image] for level in range(5)])
        assert torch.equal(weights.nonzero()[:, 0], torch.cat([positive, negative]).sort().values)
    assert_close(torch.cat(encoded), golden["rpn.pos_targets"])
    proposals = model.rpn.propose(output, torch.tensor(SIZES), 2000, 1000)
    samples = []
    for image, (boxes, scores) in enumerate(proposals):
        assert_close(torch.cat([boxes, scores[:, None]], 1), golden[f"proposals.{image}"])
        matched = model.box_head.matcher(boxes, targets[image]["boxes"])
        assert torch.equal(matched + 1, golden[f"roi.assigned_gt.{image}"].long())
        samples.append(model.box_head.sample(boxes, targets[image]["boxes"], targets[image]["labels"]))
        assert torch.equal(samples[image].objects, golden[f"roi.pos_assigned.{image}"])
    assert_close(torch.cat([s.boxes for s in samples]), golden["roi.rois"][:, 1:])
    assert torch.equal(torch.cat([s.labels for s in samples]), golden["roi.labels"])


def test_images_without_objects_train_background_only(model):
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    images = [torch.zeros(3, *size) for size in SIZES]
    targets = [empty | {"masks": torch.zeros(0, *size, dtype=torch.uint8)} for size in SIZES]
    model.zero_grad()
    losses = model(images, targets)
    assert losses["loss_rpn_box"] == losses["loss_box"] == losses["loss_mask"] == 0
    assert losses["loss_rpn_cls"] > 0
    assert losses["loss_cls"] > 0
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing, "distributed training needs a gradient for every parameter"
