"""Tensor names of the original's Mask R-CNN heads and ours (HEADS.md section 5)."""

from collections.abc import Mapping

from torch import Tensor

from piip.errors import CheckpointError

_BOX_LAYERS = {
    **{f"neck.lateral_convs.{i}.conv": f"fpn.inner_blocks.{i}.0" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"fpn.layer_blocks.{i}.0" for i in range(4)},
    "rpn_head.rpn_conv": "rpn.head.conv.0.0",
    "rpn_head.rpn_cls": "rpn.head.cls_logits",
    "rpn_head.rpn_reg": "rpn.head.bbox_pred",
    "roi_head.bbox_head.shared_fcs.0": "box_head.layers.fc6",
    "roi_head.bbox_head.shared_fcs.1": "box_head.layers.fc7",
    "roi_head.bbox_head.fc_cls": "box_head.cls_score",
    "roi_head.bbox_head.fc_reg": "box_head.bbox_pred",
}
_MASK_LAYERS = {
    **{f"roi_head.mask_head.convs.{i}.conv": f"mask_head.layers.{i}.0" for i in range(4)},
    "roi_head.mask_head.upsample": "mask_head.predictor.conv5_mask",
    "roi_head.mask_head.conv_logits": "mask_head.predictor.mask_fcn_logits",
}


def detector_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's head tensors to those of :class:`piip.tasks.detection.RCNN`.

    The order of the classes and the layout of every tensor are the same; only the names differ.

    Args:
        official: Tensors under ``neck.``, ``rpn_head.`` and ``roi_head.``, with or without a mask head.

    Raises:
        CheckpointError: A name is unknown or missing.
    """
    names = head_names(any(key.startswith("roi_head.mask_head.") for key in official))
    unknown = sorted(official.keys() - names.keys())
    missing = sorted(names.keys() - official.keys())
    if unknown or missing:
        raise CheckpointError(
            f"The original's heads do not fit a Mask R-CNN: unknown tensors: {', '.join(unknown) or 'none'}; "
            f"missing tensors: {', '.join(missing) or 'none'}."
        )
    return {names[name]: tensor for name, tensor in official.items()}


def head_names(masks: bool) -> dict[str, str]:
    """Return our name of every tensor of the original's heads, with or without a mask head."""
    layers = _BOX_LAYERS | (_MASK_LAYERS if masks else {})
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in layers.items() for kind in ("weight", "bias")}
