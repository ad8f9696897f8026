"""Masks of objects: the head, its targets, and the way back into the image (HEADS.md 2.7, 2.8)."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from piip.errors import require
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.config import TwoStageConfig

RLE = dict[str, Any]  # {"size": [height, width], "counts": text}, as COCO compresses masks


class MaskHead(nn.Module):
    """Predicts a mask of every class for pooled RoIs.

    Args:
        config: The detector.
    """

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__()
        width = config.mask_channels
        self.layers = MaskRCNNHeads(config.fpn_channels, [width] * config.mask_depth, dilation=1)
        self.predictor = MaskRCNNPredictor(width, width, config.num_classes)
        for layer in (self.predictor.conv5_mask, self.predictor.mask_fcn_logits):
            nn.init.zeros_(layer.bias)  # torchvision leaves these random

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features (N, C_fpn, 14, 14) to logits (N, C, 28, 28)."""
        return self.predictor(self.layers(pooled))

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return ``loss_mask`` for logits (N, C, s, s), labels (N,) and targets (N, s, s) of 0 and 1."""
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        total = F.binary_cross_entropy_with_logits(own, targets, reduction="sum")
        return {"loss_mask": total / max(own.numel(), 1)}


@torch.no_grad()
def mask_targets(boxes: Tensor, objects: Tensor, masks: Tensor, padded_size: Size, side: int) -> Tensor:
    """Cut the masks of objects out of the image at the boxes that shall predict them.

    Args:
        boxes: RoIs (P, 4) in pixels.
        objects: Index (P,) of the object of each.
        masks: Masks (M, h, w) of all objects of the image, 0 or 1.
        padded_size: (height, width) that the masks are filled up to with 0: it decides at the image's border.
        side: Side of the targets.

    Returns:
        float32 (P, side, side) of 0 and 1.
    """
    height, width = padded_size
    limits = boxes.new_tensor([width, height, width, height])
    rois = torch.cat([objects[:, None].to(boxes.dtype), torch.minimum(boxes.clamp(min=0), limits)], 1)
    full = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))[:, None].to(boxes.dtype)
    return (roi_align(full, rois, side, 1.0, sampling_ratio=-1, aligned=True)[:, 0] >= 0.5).to(boxes.dtype)


def paste(probability: Tensor, x: Tensor, y: Tensor, threshold: float) -> NDArray[np.bool_]:
    """Draw one predicted mask inside a window of its image.

    Args:
        probability: (s, s) on the CPU.
        x: Columns (w,) of the window relative to the box, -1 at its left and 1 at its right.
        y: Rows (h,) of the window, likewise.
        threshold: Probability from which a pixel belongs to the object.

    Returns:
        The mask (h, w) inside the window.
    """
    if not len(x) or not len(y):
        return np.zeros((len(y), len(x)), bool)
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    drawn = F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0]
    return (drawn >= threshold).numpy()


def encode_window(window: NDArray[np.bool_], corner: Size, size: Size) -> RLE:
    """Compress a mask that is known inside a window only, without ever filling the whole image.

    Args:
        window: The mask (h, w) there.
        corner: Top and left of the window.
        size: Height and width of the image.
    """
    mask = require("pycocotools.mask", "detect", "Compressing masks")
    # Columns follow each other in COCO's order, here each with a False after it: where the value changes, a run
    # begins or ends in turn.
    height, width = window.shape
    values = np.zeros(width * (height + 1) + 1, bool)
    values[1:].reshape(width, height + 1)[:, :height] = window.T
    column, row = np.divmod(np.flatnonzero(values[1:] != values[:-1]), height + 1)
    edges = (corner[1] + column) * size[0] + corner[0] + row
    # A run that ends where the next column's begins goes on.
    meets = np.flatnonzero(edges[1:-1:2] == edges[2::2]) * 2 + 1
    if len(meets):
        edges = np.delete(edges, np.concatenate([meets, meets + 1]))
    ends = [0, *edges.tolist(), size[0] * size[1]]
    counts = [after - before for before, after in itertools.pairwise(ends)]
    if counts[-1] == 0:
        counts.pop()
    encoded = mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return {"size": list(size), "counts": encoded["counts"].decode("ascii")}


def compress(probabilities: Tensor, boxes: Tensor, size: Size, threshold: float) -> list[RLE]:
    """Draw and compress the masks of an image, one at a time, on the CPU; only boxes are drawn in.

    Args:
        probabilities: (D, s, s).
        boxes: (D, 4) in pixels of the image.
        size: Height and width of the image.
        threshold: Probability from which a pixel belongs to the object.
    """
    boxes = boxes.cpu()
    x, y = (
        _relative(side, boxes[:, axis], boxes[:, axis + 2]) for axis, side in ((0, size[1]), (1, size[0]))
    )
    limits = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
    first, last = boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1
    # A box beyond the image has an empty window at its border.
    windows = (
        torch.minimum(torch.cat([first, torch.maximum(first, last)], 1).clamp(min=0), limits).int().tolist()
    )
    masks = []
    for index, (probability, (left, top, right, bottom)) in enumerate(
        zip(probabilities.cpu(), windows, strict=True)
    ):
        window = paste(probability, x[index, left:right], y[index, top:bottom], threshold)
        masks.append(encode_window(window, (top, left), size))
    return masks


def decode_masks(masks: Sequence[RLE], size: Size) -> NDArray[np.bool_]:
    """Return compressed masks as bool (D, height, width)."""
    if not masks:
        return np.zeros((0, *size), bool)
    library = require("pycocotools.mask", "detect", "Reading masks")
    return np.stack([library.decode(dict(mask)) for mask in masks]).astype(bool)


def _relative(count: int, low: Tensor, high: Tensor) -> Tensor:
    """Return the centres (D, count) of pixels relative to intervals (D,), -1 to 1; 0 where one has no length."""
    pixels = torch.arange(count) + 0.5
    place = (pixels - low[:, None]) / (high - low)[:, None] * 2 - 1
    return torch.where(place.isfinite(), place, 0.0)
