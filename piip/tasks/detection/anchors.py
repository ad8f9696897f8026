"""Anchors: the boxes from which the proposals start (HEADS.md 2.3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, int]  # (height, width)


def base_anchors(side: float, ratios: Sequence[float]) -> Tensor:
    """Return the anchors of a cell centred on the origin, (len(ratios), 4) xyxy in pixels, not rounded.

    Args:
        side: Side of the square anchor; every ratio keeps its area.
        ratios: Height over width.
    """
    roots = torch.tensor(ratios, dtype=torch.float32).sqrt()
    half = torch.stack([side * (1 / roots), side * roots], dim=-1) * 0.5
    return torch.cat([-half, half], dim=-1)


def grid_anchors(base: Tensor, grid: Size, stride: int) -> Tensor:
    """Shift ``base`` (A, 4) to the top left corner of every cell: (grid height * width * A, 4), A fastest."""
    rows, columns = (torch.arange(n, device=base.device, dtype=base.dtype) * stride for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1)
    return (shifts[:, :, None] + base).flatten(0, 2)


def cells_inside(grid: Size, stride: int, size: Size, num_anchors: int, device: torch.device) -> Tensor:
    """Tell which anchors of a map belong to cells that begin inside ``size`` pixels, bool (h * w * A)."""
    inside = [
        torch.arange(n, device=device) < math.ceil(pixels / stride)
        for n, pixels in zip(grid, size, strict=True)
    ]
    return (inside[0][:, None] & inside[1]).flatten().repeat_interleave(num_anchors)


def boxes_inside(boxes: Tensor, size: Size) -> Tensor:
    """Tell which boxes (N, 4) lie wholly inside an image of ``size`` and touch neither its right nor its bottom."""
    limits = boxes.new_tensor([size[1], size[0]])
    return ((boxes[:, :2] >= 0) & (boxes[:, 2:] < limits)).all(1)
