"""Tensor names of the original's UperNet heads and ours (HEADS.md section 5)."""

from collections.abc import Mapping

from torch import Tensor

from piip.errors import CheckpointError

_PARTS = {"decode_head.": "head.", "auxiliary_head.": "auxiliary."}


def segmenter_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's head tensors to those of :class:`piip.tasks.segmentation.Segmenter`.

    Args:
        official: Tensors under ``decode_head.`` and ``auxiliary_head.``.

    Raises:
        CheckpointError: A tensor belongs to neither.
    """
    return {segmenter_name(name): tensor for name, tensor in official.items()}


def segmenter_name(name: str) -> str:
    """Return our name of a tensor of the original's heads.

    Raises:
        CheckpointError: It belongs to no UperNet.
    """
    for old, new in _PARTS.items():
        if name.startswith(old):
            inner = name.removeprefix(old).replace("conv_seg.", "classifier.").replace(".bn.", ".batch_norm.")
            return new + inner
    raise CheckpointError(f"The tensor {name} belongs to no UperNet, whose parts are {' and '.join(_PARTS)}.")
