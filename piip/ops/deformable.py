"""Deformable attention: every query reads a few points of a feature map (Deformable DETR; SPEC 6).

Shapes: B images, Q queries, S = sum of H_l * W_l values, M heads, D channels per head, L levels, P points.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.errors import ConfigError, require
from piip.tokens import Grid

Implementation = Literal["auto", "grid_sample", "fused"]

FEWEST_SAMPLES = 1 << 14
"""Samples below which compiling a kernel for a head width would never pay."""

MOST_POINTS = 512
"""Points of one head, over all levels, that the kernel on CPUs has room for."""

HAS_NUMBA = importlib.util.find_spec("numba") is not None

_chosen: Implementation = "auto"


def deformable_attention(
    value: Tensor, grids: Sequence[Grid], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Attend from every query to a few points around its reference.

    Pixel centre k of an axis with n pixels lies at (k + 0.5) / n; outside the map values are zero.

    Args:
        value: Values of all levels, row-major and level after level, (B, S, M, D).
        grids: Height and width of every level in tokens.
        reference: Where each query looks from, (x, y) from 0 to 1, (R, Q, 2) with R = 1 or B.
        offsets: The points relative to it, in pixels of their level, (B, Q, M, L, P, 2).
        logits: Attention before the softmax over levels and points, (B, Q, M, L, P).

    Returns:
        The attended values with heads concatenated, (B, Q, M * D), in the dtype of ``value``. Points are placed and
        sampled in at least float32: half precision cannot tell neighbouring points of a large map apart.

    Raises:
        ValueError: There is no level.
    """
    if not grids:
        raise ValueError("grids is empty: deformable attention needs at least one level.")
    offsets, logits = at_least_float32(offsets), at_least_float32(logits)
    if _uses_kernel(value, logits):
        return _fused(value, grids, reference, offsets, logits)
    sizes = offsets.new_tensor([[width, height] for height, width in grids])
    places = reference.to(offsets.dtype)[:, :, None, None, None]
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    return sample_and_sum(value, grids, places + offsets / sizes[:, None], weights)


@contextmanager
def use_implementation(name: Implementation) -> Iterator[None]:
    """Choose how deformable attention is computed inside the block, in all threads.

    Args:
        name: ``grid_sample`` works everywhere; ``fused`` needs a CPU and numba (``pip install 'piip[fast]'``);
            ``auto`` takes the fused kernel where it can and where the work is worth it.

    Raises:
        ConfigError: There is no such implementation.
        MissingExtraError: numba is not installed.
    """
    global _chosen
    if name not in get_args(Implementation):
        raise ConfigError(
            f"There is no implementation {name!r}; choose from {', '.join(get_args(Implementation))}."
        )
    if name == "fused":
        require("numba", "fast", "The fused deformable attention on CPUs")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _uses_kernel(value: Tensor, logits: Tensor) -> bool:
    if _chosen == "grid_sample" or value.device.type != "cpu" or not HAS_NUMBA:
        return False
    known = value.dtype in (torch.float32, torch.float64, torch.bfloat16)
    fits = logits.shape[3] * logits.shape[4] <= MOST_POINTS
    return (
        known
        and fits
        and (_chosen == "fused" or torch.compiler.is_compiling() or logits.numel() >= FEWEST_SAMPLES)
    )


def _fused(
    value: Tensor, grids: Sequence[Grid], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    from piip.ops.fused import fused

    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    sizes = torch.tensor(
        [[width, height] for height, width in grids], dtype=torch.float64, device=value.device
    )
    pixels = reference.double()[:, :, None] * sizes - 0.5
    whole = pixels.detach().floor()
    fraction = (pixels - whole).to(exact)
    levels, first = [], 0
    for height, width in grids:
        levels += [height, width, first]
        first += height * width
    attended = fused(
        value.contiguous(),
        levels,
        whole.long(),
        fraction.contiguous(),
        offsets.to(exact).contiguous(),
        logits.to(exact).contiguous(),
    )
    return attended.to(value.dtype)


def sample_and_sum(value: Tensor, grids: Sequence[Grid], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum bilinear samples of the values with attention weights, by grid_sample.

    Args:
        value: As for `deformable_attention`.
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
    assert output is not None, "deformable_attention has refused empty grids"
    return output.reshape(batch, heads * width, queries).transpose(1, 2).to(value.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is where it is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
