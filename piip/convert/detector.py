"""Tensor names of the original's heads of Mask and Cascade R-CNN and ours (HEADS.md sections 2.10 and 5)."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from piip.errors import CheckpointError

_SHARED_LAYERS = {
    **{f"neck.lateral_convs.{i}.conv": f"fpn.inner_blocks.{i}.0" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"fpn.layer_blocks.{i}.0" for i in range(4)},
    "rpn_head.rpn_conv": "rpn.head.conv.0.0",
    "rpn_head.rpn_cls": "rpn.head.cls_logits",
    "rpn_head.rpn_reg": "rpn.head.bbox_pred",
}
_BOX_LAYERS = {
    "shared_fcs.0": "layers.fc6",
    "shared_fcs.1": "layers.fc7",
    "fc_cls": "cls_score",
    "fc_reg": "bbox_pred",
}
_MASK_LAYERS = {
    **{f"convs.{i}.conv": f"layers.{i}.0" for i in range(4)},
    "upsample": "predictor.conv5_mask",
    "conv_logits": "predictor.mask_fcn_logits",
}
_STAGE = re.compile(r"roi_head\.bbox_head\.(\d+)\.")


def detector_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's head tensors to those of `piip.tasks.detection.RCNN`, or of ``CascadeRCNN``.

    The order of the classes and the layout of every tensor are the same; only the names differ.

    Args:
        official: Tensors under ``neck.``, ``rpn_head.`` and ``roi_head.``, with or without mask heads; numbered
            box heads are those of a cascade.

    Raises:
        CheckpointError: A name is unknown or missing.
    """
    stages = _count_stages(official)
    names = head_names(any(key.startswith("roi_head.mask_head.") for key in official), stages)
    unknown = sorted(official.keys() - names.keys())
    missing = sorted(names.keys() - official.keys())
    if unknown or missing:
        raise CheckpointError(
            f"The original's heads do not fit a {'Cascade' if stages else 'Mask'} R-CNN: unknown tensors: "
            f"{', '.join(unknown) or 'none'}; missing tensors: {', '.join(missing) or 'none'}."
        )
    return {names[name]: tensor for name, tensor in official.items()}


def head_names(masks: bool, stages: int = 0) -> dict[str, str]:
    """Return our name of every tensor of the original's heads.

    Args:
        masks: Whether there are mask heads.
        stages: Stages of a cascade; 0 = none, but a single pair of heads without a number.
    """
    layers = dict(_SHARED_LAYERS)
    for kind, ours, own in (("bbox", "box", _BOX_LAYERS), ("mask", "mask", _MASK_LAYERS if masks else {})):
        for stage in range(stages) or (None,):
            old, new = f"roi_head.{kind}_head", f"{ours}_head"
            if stage is not None:
                old, new = f"{old}.{stage}", f"{new}s.{stage}"
            layers |= {f"{old}.{key}": f"{new}.{value}" for key, value in own.items()}
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in layers.items() for kind in ("weight", "bias")}


def _count_stages(names: Iterable[str]) -> int:
    """Return the number of stages of a cascade, 0 where a box head has no number."""
    numbers = [_STAGE.match(name) for name in names if name.startswith("roi_head.bbox_head.")]
    if None in numbers:
        return 0
    return max((int(match[1]) + 1 for match in numbers if match), default=0)
