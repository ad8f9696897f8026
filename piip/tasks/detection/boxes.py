"""Boxes as (x1, y1, x2, y2) in pixels: overlap, limits, and their coding relative to other boxes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # a side changes by at most this factor in one step, either way


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlaps (..., N, M) of boxes (..., N, 4) and (..., M, 4), 0 without area (HEADS.md 2.8).

    Works axis by axis: hundreds of thousands of anchors never meet the objects as (N, M, 2) tensors.
    """
    a, b = first[..., :, None, :], second[..., None, :, :]
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    intersection = width.mul_(height)
    union = (area(first)[..., :, None] + area(second)[..., None, :]).sub_(intersection).clamp_(min=1e-6)
    return intersection.div_(union)


def giou(first: Tensor, second: Tensor, least: float) -> Tensor:
    """Return the generalised overlaps (...), from -1 to 1, of boxes (..., 4); shapes broadcast.

    Args:
        first: Boxes.
        second: Boxes.
        least: Smallest area of union and hull, so that boxes without area have an overlap.
    """
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = (area(first) + area(second) - intersection).clamp(min=least)
    low, high = torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1).clamp(min=least)
    return intersection / union - (hull - union) / hull


def from_centre(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) given as centre and size as corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def to_centre(boxes: Tensor) -> Tensor:
    """Return boxes (..., 4) given as corners as centre and size."""
    return torch.cat(_centre_size(boxes), dim=-1)


def area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Limit boxes (..., 4) to images of ``sizes`` (..., 2) as (height, width), borders included."""
    limits = sizes.flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limits, limits], dim=-1))


def mirror(boxes: Tensor, width: float) -> Tensor:
    """Return boxes (..., 4) of an image that is ``width`` wide in the image mirrored left to right, and back."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], dim=-1)


@dataclass(frozen=True)
class BoxCoder:
    """Boxes as offsets of centre and log size relative to reference boxes (HEADS.md 2.4).

    Attributes:
        stds: What the offsets (dx, dy, dw, dh) are divided by.
    """

    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, references: Tensor, boxes: Tensor) -> Tensor:
        """Return the offsets (..., 4) that lead from ``references`` (..., 4) to ``boxes`` (..., 4)."""
        centre, size = _centre_size(references)
        target_centre, target_size = _centre_size(boxes)
        deltas = torch.cat([(target_centre - centre) / size, (target_size / size).log()], dim=-1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, references: Tensor, deltas: Tensor) -> Tensor:
        """Return the boxes (..., 4) at ``deltas`` (..., 4) from ``references`` (..., 4); shapes broadcast."""
        deltas = deltas * deltas.new_tensor(self.stds)
        centre, size = _centre_size(references)
        centre = centre + size * deltas[..., :2]
        half = size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
        return torch.cat([centre - half, centre + half], dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low
