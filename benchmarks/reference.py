"""Deformable attention written plainly, as published pure-PyTorch versions do it: the yardstick."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_deformable_attention(
    value: Tensor, grids: Sequence[tuple[int, int]], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Compute `piip.ops.deformable_attention` level by level with all samples stacked before they are weighted."""
    offsets, logits = offsets.float(), logits.float()
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    sizes = offsets.new_tensor([[width, height] for height, width in grids])
    locations = reference.float()[:, :, None, None, None] + offsets / sizes[:, None]
    batch, _, heads, width = value.shape
    queries, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    sampling_grids = 2 * locations - 1
    samples = []
    for level, values in enumerate(value.split([h * w for h, w in grids], dim=1)):
        height, length = grids[level]
        feature = values.flatten(2).transpose(1, 2).reshape(batch * heads, width, height, length)
        grid = sampling_grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(feature, grid, padding_mode="zeros", align_corners=False))
    attention = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    stacked = torch.stack(samples, dim=-2).flatten(-2)
    return (stacked * attention).sum(-1).view(batch, heads * width, queries).transpose(1, 2).contiguous()
