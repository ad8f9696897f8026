"""Deformable attention written plainly, as published pure-PyTorch versions do it: the yardstick."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.ops.reference import reference_points


def reference_deformable_attention(
    value: Tensor,
    grids: Sequence[tuple[int, int]],
    reference: Tensor | tuple[int, int],
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Compute `piip.ops.deformable_attention` level by level with all samples stacked before they are weighted."""
    if not isinstance(reference, Tensor):
        reference = reference_points(reference, value.device)
    offsets, logits = offsets.float(), logits.float()
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    # One by one: copying a list to a GPU would wait for it, and a CUDA graph could not hold it.
    sizes = torch.stack([offsets.new_full((), n) for height, width in grids for n in (width, height)])
    locations = reference.float()[:, :, None, None, None] + offsets / sizes.view(-1, 1, 2)
    batch, _, heads, width = value.shape
    queries, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    sampling_grids = 2 * locations - 1
    samples = []
    for level, values in enumerate(value.float().split([h * w for h, w in grids], dim=1)):
        height, length = grids[level]
        feature = values.flatten(2).transpose(1, 2).reshape(batch * heads, width, height, length)
        grid = sampling_grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(feature, grid, padding_mode="zeros", align_corners=False))
    attention = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    stacked = torch.stack(samples, dim=-2).flatten(-2)
    attended = (stacked * attention).sum(-1).view(batch, heads * width, queries)
    return attended.transpose(1, 2).contiguous().to(value.dtype)
