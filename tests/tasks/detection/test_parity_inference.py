"""Every stage of prediction against the original (golden/heads/maskrcnn_infer)."""

import numpy as np
import pytest
import torch

from piip.tasks.detection.masks import decode_masks
from piip.tasks.detection.pooling import with_image_index
from tests.tasks.detection.golden import assert_close, detector, load, metas, unpack

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZES = torch.tensor([[213, 287], [161, 250]])


@pytest.fixture(scope="module")
def golden(shared):
    return load(shared, "maskrcnn_infer")


@pytest.fixture(scope="module")
def model(shared):
    return detector(shared)


@pytest.fixture(scope="module")
def pyramid(model):
    with torch.no_grad():
        return model.pyramid(model.backbone.maps)


def test_pyramid(golden, pyramid):
    assert len(pyramid) == 5
    for level, ours in enumerate(pyramid):
        assert_close(ours, golden[f"fpn.{level}"])


@torch.no_grad()
def test_rpn_head(golden, model, pyramid):
    output = model.rpn(pyramid)
    for level in range(5):
        assert_close(output.logits[level], golden[f"rpn_cls.{level}"].permute(0, 2, 3, 1).flatten(1))
        reference = golden[f"rpn_reg.{level}"].permute(0, 2, 3, 1).reshape(2, -1, 4)
        assert_close(output.deltas[level], reference)


@torch.no_grad()
def test_proposals(golden, model, pyramid):
    proposals = model.rpn.propose(model.rpn(pyramid), SIZES, 1000, 1000)
    for image, (boxes, scores) in enumerate(proposals):
        assert_close(torch.cat([boxes, scores[:, None]], 1), golden[f"proposals.{image}"])


@torch.no_grad()
def test_box_head(golden, model):
    pyramid = [golden[f"fpn.{level}"] for level in range(5)]
    rois = with_image_index([golden[f"proposals.{i}"][:, :4] for i in range(2)])
    pooled = model.box_pooler(pyramid, rois)
    logits, deltas = model.box_head(pooled)
    assert torch.equal(model.box_pooler.levels(rois), golden["roi_levels"])
    assert_close(pooled[:8], golden["roi_feats_first8"])
    assert_close(logits, golden["cls_score"])
    assert_close(deltas.flatten(1), golden["bbox_pred"])


@torch.no_grad()
def test_both_heads_on_extra_rois(golden, model):
    pyramid = [golden[f"fpn.{level}"] for level in range(5)]
    rois = golden["extra_rois"]
    pooled = model.box_pooler(pyramid, rois)
    logits, deltas = model.box_head(pooled)
    assert torch.equal(model.box_pooler.levels(rois), golden["extra_levels"])
    assert_close(pooled, golden["extra_box_feats"])
    assert_close(logits, golden["extra_cls_score"])
    assert_close(deltas.flatten(1), golden["extra_bbox_pred"])
    assert_close(model.mask_head(model.mask_pooler(pyramid, rois)), golden["extra_mask_logits"])


@torch.no_grad()
def test_mask_head(golden, model):
    pyramid = [golden[f"fpn.{level}"] for level in range(5)]
    rois = golden["mask_rois"]
    logits = model.mask_head(model.mask_pooler(pyramid, rois))
    labels = torch.cat([golden["det_ori_labels.0"], golden["det_ori_labels.1"]])
    assert_close(logits[:4], golden["mask_logits_allclasses_first4"])
    assert_close(logits[torch.arange(200), labels], golden["mask_logits_selected"])
    boxes = [rois[rois[:, 0] == i, 1:] for i in range(2)]
    probabilities = model.detect_masks(pyramid, boxes, labels.split([len(b) for b in boxes]))
    assert_close(torch.cat(probabilities), golden["mask_logits_selected"].sigmoid())


@pytest.mark.parametrize("original", [False, True], ids=["network_pixels", "original_pixels"])
@torch.no_grad()
def test_whole_detector(golden, shared, model, original):
    images = [torch.zeros(3, *size) for size in SIZES.tolist()]
    found = model(images, metas=metas(shared) if original else None)
    for image, ours in enumerate(found):
        prefix = "det_ori" if original else "det_net"
        assert torch.equal(ours.labels, golden[f"{prefix}_labels.{image}"])
        boxes = torch.cat([ours.boxes, ours.scores[:, None]], 1)
        assert_close(boxes, golden[f"{prefix}_boxes.{image}"])
        masks = decode_masks(ours.masks, ours.original_size)
        assert masks.shape[1:] == ours.original_size
        if original:
            area = masks.sum((1, 2))
            assert np.abs(area - golden[f"mask_area.{image}"].numpy()).max() <= 2
            reference = unpack(golden[f"mask_pasted_first12.{image}"], ours.original_size[1]).numpy()
            assert (masks[:12] != reference).sum((1, 2)).max() <= 2


@torch.no_grad()
def test_faster_rcnn_is_the_same_detector_without_masks(golden, shared, model):
    mask_head, model.mask_head = model.mask_head, None
    try:
        found = model([torch.zeros(3, *size) for size in SIZES.tolist()], metas=metas(shared))
    finally:
        model.mask_head = mask_head
    assert all(ours.masks is None for ours in found)
    assert_close(found[1].boxes, golden["det_ori_boxes.1"][:, :4])
