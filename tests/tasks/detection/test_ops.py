"""The small operations against the original (golden/heads/ops)."""

import pytest
import torch
from torchvision.ops import batched_nms, nms, roi_align

from piip.tasks.detection.anchors import base_anchors, cells_inside, grid_anchors
from piip.tasks.detection.boxes import BoxCoder, clip, iou
from piip.tasks.detection.masks import compress, decode_masks, mask_targets
from piip.tasks.detection.matching import Matcher
from piip.tasks.detection.rpn import Proposals
from tests.tasks.detection.golden import assert_close, load, unpack

STRIDES = (4, 8, 16, 32, 64)
GRIDS = ((3, 5), (2, 3), (2, 2), (1, 2), (1, 1))
ROI_STDS = (0.1, 0.1, 0.2, 0.2)


@pytest.fixture(scope="module")
def golden(shared):
    return load(shared, "ops")


@pytest.mark.parametrize("level", range(5))
def test_anchors(golden, level):
    base = base_anchors(8 * STRIDES[level], (0.5, 1.0, 2.0))
    assert_close(base, golden[f"anchors.base.{level}"])
    grid = GRIDS[level]
    assert_close(grid_anchors(base, grid, STRIDES[level]), golden[f"anchors.grid.{level}"])
    inside = cells_inside(grid, STRIDES[level], (9, 17), 3, base.device)
    assert torch.equal(inside, golden[f"anchors.valid_for_pad_9x17.{level}"])


@pytest.mark.parametrize(("kind", "stds"), [("rpn", (1.0,) * 4), ("rcnn", ROI_STDS)])
def test_coder(golden, kind, stds):
    coder, rois = BoxCoder(stds), golden["coder.rois"]
    assert_close(coder.encode(rois, golden["coder.gt"]), golden[f"coder.{kind}.encoded"])
    decoded = coder.decode(rois, golden["coder.deltas"])
    assert_close(decoded, golden[f"coder.{kind}.decoded_noclip"])
    assert_close(clip(decoded, torch.tensor([180, 270])), golden[f"coder.{kind}.decoded_clip_180x270"])


def test_coder_with_deltas_of_every_class(golden):
    deltas = golden["coder.multi.deltas"].unflatten(1, (-1, 4))
    decoded = BoxCoder(ROI_STDS).decode(golden["coder.rois"][:, None], deltas)
    assert_close(clip(decoded, torch.tensor([180, 270])).flatten(1), golden["coder.multi.decoded"])


def test_iou(golden):
    assert_close(iou(golden["iou.a"], golden["iou.b"]), golden["iou.iou"])


@pytest.mark.parametrize(
    ("name", "matcher"),
    [
        ("assign.rpn", Matcher(0.7, 0.3, 0.3)),
        ("assign.rcnn_maskrcnn", Matcher(0.5, 0.5, 0.5)),
        ("assign.rcnn_cascade2", Matcher(0.6, 0.6, 0.6, low_quality=False)),
        ("assign2.rcnn_maskrcnn", Matcher(0.5, 0.5, 0.5)),
        ("assign2.cascade", Matcher(0.5, 0.5, 0.5, low_quality=False)),
    ],
)
def test_matching(golden, name, matcher):
    case = name.split(".")[0]
    matched = matcher(golden[f"{case}.boxes"], golden[f"{case}.gt"])
    assert torch.equal(matched + 1, golden[name])


def test_suppression_is_torchvisions(golden):
    boxes, scores, groups = golden["nms.boxes"], golden["nms.scores"], golden["nms.ids"]
    assert torch.equal(batched_nms(boxes, scores, groups, 0.5), golden["nms.keep"])
    assert torch.equal(nms(boxes, scores, 0.5), golden["nms.agnostic.keep"])


def test_multiclass_suppression(golden):
    boxes, scores = golden["mcnms.boxes"].unflatten(1, (-1, 4)), golden["mcnms.scores"]
    row, label = (scores[:, :-1] > 0.05).nonzero(as_tuple=True)
    kept = batched_nms(boxes[row, label], scores[row, label], label, 0.5)[:30]
    found = Proposals(boxes[row, label][kept], scores[row, label][kept])
    assert torch.equal(label[kept], golden["mcnms.labels"])
    assert_close(torch.cat([found.boxes, found.scores[:, None]], 1), golden["mcnms.dets"])


@pytest.mark.parametrize("side", [7, 14])
def test_roi_align(golden, side):
    out = roi_align(golden["roi.feat"], golden["roi.rois"], side, 1 / 8, sampling_ratio=-1, aligned=True)
    assert_close(out, golden[f"roi.out{side}"])


def test_paste(golden):
    masks = compress(golden["paste.prob"][:, 0], golden["paste.boxes"], (40, 50), 0.5)
    drawn = torch.from_numpy(decode_masks(masks, (40, 50)))
    assert torch.equal(drawn, golden["paste.cpu_path_mask"])


def test_mask_targets(golden):
    masks = unpack(golden["mt.gt_masks_packed"], 288)
    targets = mask_targets(golden["mt.proposals"], golden["mt.assigned"], masks, (224, 288), 28)
    assert torch.equal(targets, golden["mt.targets"].float())
