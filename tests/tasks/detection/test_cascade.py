"""Cascade R-CNN against its definition written out plainly, box by box (HEADS.md 2.10)."""

import dataclasses
import math
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, nms, roi_align

from piip.errors import ConfigError
from piip.hub import from_pretrained, save_pretrained
from piip.network import PIIP
from piip.tasks.detection import (
    RCNN,
    BoxStage,
    CascadeRCNN,
    CascadeRCNNConfig,
    RCNNConfig,
    detector_config,
    new_detector,
)
from piip.tasks.detection.box_head import BoxHead
from piip.tasks.detection.rpn import RegionProposals
from tests.helpers import fill, tiny_config
from tests.tasks.detection.toy import SMALL, TinyBackbone, assert_sees_the_scene, learn, scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
IOUS = [0.5, 0.6, 0.7]
WEIGHTS = [1.0, 0.5, 0.25]
SIZE = (96, 120)
ONE_STAGE = (BoxStage(0.5, (0.1, 0.1, 0.2, 0.2)),)


def config(**changes):
    return CascadeRCNNConfig(**(SMALL | changes))


def cascade(seed=0, **changes):
    """A cascade whose heads say something: of a new one, all classes are as likely, and no box moves."""
    torch.manual_seed(seed)
    model = CascadeRCNN(config(**changes), TinyBackbone())
    with torch.no_grad():
        for stage in model.stages:
            stage.boxes.cls_score.weight.normal_(std=0.3)
            stage.boxes.bbox_pred.weight.normal_(std=0.5)
    return model


def moved(box, deltas, stds):
    """A box at offsets from another one, clipped to the image, in Python's numbers."""
    x1, y1, x2, y2 = (float(v) for v in box)
    dx, dy, dw, dh = (float(d) * s for d, s in zip(deltas, stds, strict=True))
    limit = abs(math.log(16 / 1000))
    width = (x2 - x1) * math.exp(min(max(dw, -limit), limit))
    height = (y2 - y1) * math.exp(min(max(dh, -limit), limit))
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(c, 0.0), SIZE[1 - i % 2]) for i, c in enumerate(corners)]


def pooled(pyramid, boxes, side):
    """RoIs of one image, each pooled from the level of its size, one after the other."""
    features = []
    for box in boxes:
        side_length = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
        level = min(max(math.floor(math.log2(side_length / 56 + 1e-6)), 0), 3)
        roi = torch.cat([torch.zeros(1), box])[None]
        features.append(roi_align(pyramid[level], roi, side, 1 / (4 * 2**level), -1, True))
    return torch.cat(features)


def outputs(state, stage, features):
    """Logits and offsets of a stage's box head from its tensors."""
    prefix = f"box_heads.{stage}."
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    x = features.flatten(1)
    for layer in ("layers.fc6", "layers.fc7"):
        x = F.relu(F.linear(x, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]))
    return [F.linear(x, tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for n in ("cls_score", "bbox_pred")]


@torch.no_grad()
def plain_detections(model, pyramid):
    """All of the cascade from its proposals to its 100 best boxes."""
    state = model.state_dict()
    boxes = model.rpn.propose(model.rpn(pyramid), torch.tensor([SIZE]), 1000, 1000)[0].boxes
    votes = []
    for stage in range(3):
        logits, deltas = outputs(state, stage, pooled(pyramid, boxes, 7))
        boxes = torch.tensor([moved(b, d, STDS[stage]) for b, d in zip(boxes, deltas, strict=True)])
        votes.append(logits)
    scores = ((votes[0] + votes[1] + votes[2]) / 3).softmax(-1)
    found = []
    for label in range(2):
        chosen = (scores[:, label] > 0.05).nonzero()[:, 0]
        kept = chosen[nms(boxes[chosen], scores[chosen, label], 0.5)]
        found += [(float(scores[i, label]), label, *boxes[i].tolist()) for i in kept]
    return torch.tensor(sorted(found, reverse=True)[:100])


def test_detections_are_those_of_the_definition():
    model = cascade().eval()
    image, _ = scene()
    with torch.no_grad():
        pyramid = model.pyramid(model.backbone(model.batch([image])))
        expected = plain_detections(model, pyramid)
        found = model([image])[0]
    assert len(found) == len(expected) > 20
    assert set(found.labels.tolist()) == {0, 1}
    ours = torch.cat([found.scores[:, None], found.labels[:, None], found.boxes], 1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_masks_are_averaged_as_probabilities():
    model = cascade().eval()
    image, target = scene()
    pyramid = model.pyramid(model.backbone(model.batch([image])))
    boxes, labels = target["boxes"], target["labels"]
    (found,) = model.detect_masks(pyramid, [boxes], [labels])
    features = pooled(pyramid, boxes, 14)
    expected = sum(head(features)[[0, 1], labels].sigmoid() for head in model.mask_heads) / 3
    torch.testing.assert_close(found, expected)
    assert (found - model.mask_heads[2](features)[[0, 1], labels].sigmoid()).abs().max() > 1e-3


def recorded(model, image, target):
    """The losses of a scene, and the arguments and outcome of every sampling of RoIs."""
    calls = []
    function = BoxHead.sample

    def sample(head, *given):
        calls.append((head, given, function(head, *given)))
        return calls[-1][-1]

    with patch.object(BoxHead, "sample", sample):
        return model([image], [target]), calls


def test_every_stage_learns_from_the_boxes_of_the_one_before():
    model = cascade(rpn_post_nms_train=300)
    image, target = scene()
    losses, calls = recorded(model, image, target)
    state = model.state_dict()
    with torch.no_grad():
        pyramid = model.pyramid(model.backbone(model.batch([image])))
    assert [head for head, *_ in calls] == list(model.box_heads)
    assert len(calls[0][1][0]) == 300
    before = None
    for stage, (_, (proposals, objects, _), samples) in enumerate(calls):
        assert not proposals.requires_grad
        assert torch.equal(objects, target["boxes"])
        if before is not None:
            torch.testing.assert_close(proposals, before, rtol=1e-4, atol=1e-3)
        given = [i for i, box in enumerate(samples.boxes) if (box == objects).all(1).any()]
        assert given == samples.added.nonzero()[:, 0].tolist() == [0, 1]
        best, index = box_iou(samples.boxes, objects).max(1)
        wanted = torch.where(best >= IOUS[stage], target["labels"][index], 2)
        assert torch.equal(samples.labels, wanted)
        logits, deltas = outputs(state, stage, pooled(pyramid, samples.boxes, 7))
        expected = WEIGHTS[stage] * F.cross_entropy(logits, samples.labels)
        torch.testing.assert_close(losses[f"loss_cls_{stage + 1}"], expected)
        expected = WEIGHTS[stage] * box_loss(samples, deltas, objects[index], STDS[stage])
        torch.testing.assert_close(
            float(losses[f"loss_box_{stage + 1}"].detach()), expected, rtol=1e-4, atol=0
        )
        before = torch.tensor(
            [moved(b, d, STDS[stage]) for b, d in zip(samples.boxes, deltas, strict=True)][2:]
        )
    assert len(calls[1][1][0]) == len(calls[0][2].boxes) - 2  # the objects themselves are not handed on
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_box"} | {
        f"loss_{kind}_{stage}" for kind in ("cls", "box", "mask") for stage in (1, 2, 3)
    }


def box_loss(samples, deltas, objects, stds):
    """Smooth L1 with beta 1 over the RoIs that are objects, divided by the number of all, in Python's numbers."""
    total = 0.0
    for box, label, delta, wanted in zip(samples.boxes, samples.labels, deltas, objects, strict=True):
        if label == 2:
            continue
        width, height = float(box[2] - box[0]), float(box[3] - box[1])
        target_width, target_height = float(wanted[2] - wanted[0]), float(wanted[3] - wanted[1])
        offsets = (
            float(wanted[0] + wanted[2] - box[0] - box[2]) / 2 / width,
            float(wanted[1] + wanted[3] - box[1] - box[3]) / 2 / height,
            math.log(target_width / width),
            math.log(target_height / height),
        )
        for value, offset, std in zip(delta.tolist(), offsets, stds, strict=True):
            error = abs(value - offset / std)
            total += 0.5 * error**2 if error < 1 else error - 0.5
    return total / len(samples.boxes)


def test_proposals_train_on_anchors_inside_the_image():
    model = cascade()
    image, target = scene()
    calls = []
    function = RegionProposals.sample

    def sample(head, *given):
        calls.append(function(head, *given))
        return calls[-1]

    with patch.object(RegionProposals, "sample", sample):
        losses = model([image], [target])
    ((positive, negative), matched) = calls[0]
    output = model.rpn(model.pyramid(model.backbone(model.batch([image]))))
    anchors = torch.cat(output.anchors)
    inside = (anchors >= 0).all(1) & (anchors[:, 2] < SIZE[1]) & (anchors[:, 3] < SIZE[0])
    assert 0 < inside.sum() < len(anchors)
    assert inside[torch.cat([positive, negative])].all()
    assert len(positive) + len(negative) == min(256, int(inside.sum()))
    error = (
        torch.cat(output.deltas, 1)[0, positive]
        - model.rpn.coder.encode(anchors[positive], target["boxes"][matched])
    ).abs()
    smooth = torch.where(error < 1 / 9, 0.5 * error**2 * 9, error - 0.5 / 9).sum()
    torch.testing.assert_close(losses["loss_rpn_box"], smooth / (len(positive) + len(negative)))


@pytest.mark.parametrize("masks", [True, False])
def test_one_stage_is_r_cnn_with_one_box_for_all_classes(masks):
    model = cascade(stages=ONE_STAGE, masks=masks)
    shared = {f.name for f in dataclasses.fields(RCNNConfig)} & {f.name for f in dataclasses.fields(config())}
    settings = {name: getattr(model.config, name) for name in shared}
    rcnn = RCNN(RCNNConfig(**settings), model.backbone)
    state = {name.replace("heads.0.", "head."): value for name, value in model.state_dict().items()}
    rcnn.load_state_dict(state)
    image, target = scene()
    losses = []
    for detector in (model, rcnn):
        torch.manual_seed(3)
        losses.append(detector([image], [target]))
    alone = {name.removesuffix("_1"): value for name, value in losses[0].items()}
    assert alone == losses[1]
    found, other = model.eval()([image])[0], rcnn.eval()([image])[0]
    assert len(found) > 20
    assert torch.equal(found.boxes, other.boxes)
    assert torch.equal(found.scores, other.scores)
    assert found.masks == other.masks


@pytest.mark.parametrize("kind", ["objects", "no objects", "no anchor inside"])
@pytest.mark.parametrize("agnostic", [True, False])
def test_every_parameter_gets_a_gradient(kind, agnostic):
    model = cascade(box_class_agnostic=agnostic)
    image, target = scene()
    if kind != "objects":
        target = {name: values[:0] for name, values in target.items()}
    if kind == "no anchor inside":
        image, target["masks"] = image[:, :20, :20], target["masks"][:, :20, :20]
    losses = model([image], [target])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    if kind != "objects":
        assert all(losses[f"loss_{kind}_{stage}"] == 0 for kind in ("box", "mask") for stage in (1, 2, 3))


def test_with_a_box_for_every_class_the_class_decides():
    head = cascade(box_class_agnostic=False).box_heads[0]
    boxes = torch.tensor([[10.0, 10, 30, 30]] * 4)
    deltas = torch.zeros(4, 2, 4)
    deltas[:, 1, 0] = 1.0  # the bar moves by a tenth of its width
    logits = torch.tensor([[2.0, 1, 0], [1, 2, 3], [2, 1, 0], [1, 2, 3]])
    size = torch.tensor(SIZE)
    assert head.refine(boxes, logits, deltas, size)[:, 0].tolist() == [10, 12, 10, 12]
    labels = torch.tensor([1, 0, 2, 2])  # of background, the best class counts
    assert head.refine(boxes, logits, deltas, size, labels)[:, 0].tolist() == [12, 10, 10, 12]


def test_in_training_the_true_class_decides():
    model = cascade(box_class_agnostic=False, masks=False)
    image, target = scene()
    function, known = BoxHead.refine, []

    def refine(head, *given):
        known.append(given[-1])
        return function(head, *given)

    with patch.object(BoxHead, "refine", refine):
        _, calls = recorded(model, image, target)
    assert [labels.tolist() for labels in known] == [samples.labels.tolist() for *_, samples in calls[:2]]


def test_no_stage_takes_boxes_below_its_overlap():
    matchers = [head.matcher for head in cascade().box_heads]
    assert [(m.positive, m.negative, m.low_quality) for m in matchers] == [(iou, iou, False) for iou in IOUS]


def test_learns_one_scene():
    torch.manual_seed(0)
    model = CascadeRCNN(config(rpn_post_nms_train=100, rpn_post_nms=100, box_samples=64), TinyBackbone())
    history = learn(model, 80, lr=1e-2)
    assert history[-1] < history[0] / 2
    assert_sees_the_scene(model)


def test_same_seed_same_losses():
    image, target = scene()
    model = cascade()
    torch.manual_seed(5)
    first = model([image], [target])
    torch.manual_seed(5)
    assert first == model([image], [target])


def test_batches_of_any_sizes_with_and_without_objects():
    image, target = scene()
    model = cascade(masks=False)
    none = {name: values[:0] for name, values in target.items()}
    losses = model([image, torch.randn(3, 40, 150)], [target, none])
    assert len(losses) == 8
    found = model.eval()([image, torch.randn(3, 40, 150)])
    assert [instances.original_size for instances in found] == [SIZE, (40, 150)]
    assert all(instances.masks is None for instances in found)
    alone = model([image])[0]
    torch.testing.assert_close(found[0].scores[:5], alone.scores[:5], rtol=0.2, atol=0.05)


def test_saved_and_loaded_again(tmp_path):
    backbone = PIIP(tiny_config())
    changes = {"in_channels": backbone.out_channels, "nms_kind": "linear", "rpn_post_nms": 50, "masks": False}
    head = config(**changes)
    model = fill(new_detector(head, backbone)).eval()
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, CascadeRCNN)
    assert loaded.config == model.config
    for (name, value), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    image = torch.randn(3, 128, 128)
    assert torch.equal(model([image])[0].boxes, loaded([image])[0].boxes)


def test_recipes_choose_stages():
    described = {"classes": ("a",), "in_channels": (8,) * 4}
    stages = [{"iou": 0.4, "stds": [0.1, 0.1, 0.2, 0.2]}, {"iou": 0.8, "stds": [0.1] * 4, "weight": 2}]
    head = detector_config({"kind": "cascade_rcnn", "stages": stages}, described)
    assert head.stages[1] == BoxStage(0.8, (0.1,) * 4, 2.0)
    assert CascadeRCNNConfig.from_dict(head.to_dict()) == head
    assert len(CascadeRCNNConfig(**described).stages) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "stages is empty"),
        ({"stages": [{"iou": 0.5, "stds": [0.1, 0.1]}]}, "stds has 2 entries; it needs 4"),
        ({"stages": [{"iou": 1.5, "stds": [0.1] * 4}]}, "stage.iou is 1.5; give a number from 0 to 1"),
        (
            {"stages": [{"iou": 0.5, "stds": [0.1] * 4, "weight": 0}]},
            "stage.weight is 0.0; give a number above 0",
        ),
        ({"box_beta": 0}, "box_beta is 0.0; give a number above 0"),
        ({"box_stds": [0.1] * 4}, "no key 'box_stds'"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        CascadeRCNNConfig.from_dict({"classes": ["a"], "in_channels": [8] * 4} | changes)
