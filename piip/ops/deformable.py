"""Deformable attention: every query reads a few points of a feature map (Deformable DETR; SPEC 6).

Shapes: B images, Q queries, S = sum of H_l * W_l values, M heads, d channels per head, L levels, P points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.tokens import Grid


def deformable_attention(value: Tensor, grids: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum bilinear samples of the values with attention weights.

    Pixel centre k of an axis with n pixels lies at (k + 0.5) / n; outside the map values are zero.

    Args:
        value: Values of all levels, row-major and level after level, (B, S, M, d).
        grids: Height and width of every level in tokens.
        locations: Sampling points (x, y), 0 to 1 over each level's map, (B, Q, M, L, P, 2).
        weights: Attention weights, (B, Q, M, L, P).

    Returns:
        The attended values with heads concatenated, (B, Q, M * d), in the dtype of ``value``. Sampling itself
        runs in at least float32: half precision cannot tell neighbouring points of a large map apart.
    """
    batch, queries, heads, levels, points = weights.shape
    width = value.shape[-1]
    # grid_sample wants the heads in the batch and channels first.
    maps = at_least_float32(value).permute(0, 2, 3, 1).reshape(batch * heads, width, -1)
    grid = (2 * locations.to(maps.dtype) - 1).permute(0, 2, 3, 1, 4, 5)
    grid = grid.reshape(batch * heads, levels, queries, points, 2)
    weight = weights.to(maps.dtype).permute(0, 2, 3, 1, 4).reshape(batch * heads, levels, 1, queries, points)

    output = None
    start = 0
    for level, (height, length) in enumerate(grids):
        stop = start + height * length
        feature = maps[..., start:stop].reshape(batch * heads, width, height, length)
        sampled = F.grid_sample(feature, grid[:, level], padding_mode="zeros", align_corners=False)
        attended = (sampled * weight[:, level]).sum(-1)
        output = attended if output is None else output + attended
        start = stop
    if output is None:
        raise ValueError("grids is empty: deformable attention needs at least one level.")
    return output.reshape(batch, heads * width, queries).transpose(1, 2).to(value.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is where it is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
