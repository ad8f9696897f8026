"""Deformable attention: every query reads a few points of a feature map (Deformable DETR; SPEC 6).

Shapes: B images, Q queries, S = sum of H_l * W_l values, M heads, D channels per head, L levels, P points.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.errors import ConfigError, require
from piip.ops.reference import reference_points
from piip.recomputing import cast
from piip.tokens import Grid

Implementation = Literal["auto", "grid_sample", "fused"]

FEWEST_SAMPLES = 1 << 14
"""Samples below which compiling a kernel for a head width would never pay on a CPU."""
KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
"""Values that the kernel of a device takes."""

MOST_POINTS = 512
"""Points of one head, over all levels, that the kernels have room for."""

HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_TRITON = importlib.util.find_spec("triton") is not None and (
    os.name == "nt" or bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
)
"""Triton builds its launcher with a C compiler; the one for Windows brings its own."""

_chosen: Implementation = "auto"


def deformable_attention(
    value: Tensor, grids: Sequence[Grid], reference: Tensor | Grid, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Attend from every query to a few points around its reference.

    Pixel centre k of an axis with n pixels lies at (k + 0.5) / n; outside the map values are zero.

    Args:
        value: Values of all levels, row-major and level after level, (B, S, M, D).
        grids: Height and width of every level in tokens.
        reference: Where each query looks from, (x, y) from 0 to 1, (R, Q, 2) with R = 1 or B; or the grid (height,
            width) that the queries are the tokens of, which then look from their own centres.
        offsets: The points relative to it, in pixels of their level, (B, Q, M, L, P, 2).
        logits: Attention before the softmax over levels and points, (B, Q, M, L, P).

    Returns:
        The attended values with heads concatenated, (B, Q, M * D), in the dtype of ``value``. Points are placed and
        sampled in at least float32: half precision cannot tell neighbouring points of a large map apart.

    Raises:
        ValueError: There is no level, or the shapes contradict each other.
    """
    if not grids:
        raise ValueError("grids is empty: deformable attention needs at least one level.")
    _check_shapes(value, grids, reference, offsets, logits)
    if _uses_kernel(value, logits):
        return _fused(value, grids, reference, offsets, logits)
    if not isinstance(reference, Tensor):
        reference = reference_points(reference, value.device)
    offsets, logits = at_least_float32(offsets), at_least_float32(logits)
    # One by one: copying a list to a GPU would wait for it, and a CUDA graph could not hold it.
    sizes = torch.stack([offsets.new_full((), n) for height, width in grids for n in (width, height)])
    places = reference.to(offsets.dtype)[:, :, None, None, None]
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    return sample_and_sum(value, grids, places + offsets / sizes.view(-1, 1, 2), weights)


@contextmanager
def use_implementation(name: Implementation) -> Iterator[None]:
    """Choose how deformable attention is computed inside the block, in all threads.

    Args:
        name: ``grid_sample`` works everywhere; ``fused`` is one kernel, compiled by numba on CPUs
            (``pip install 'piip[fast]'``) and by Triton on GPUs; ``auto`` takes the fused kernel where it can and
            where the work is worth it. Devices and dtypes without a kernel always get ``grid_sample``.

    Raises:
        ConfigError: There is no such implementation.
        MissingExtraError: Neither numba nor Triton is there.
    """
    global _chosen
    if name not in get_args(Implementation):
        raise ConfigError(
            f"There is no implementation {name!r}; choose from {', '.join(get_args(Implementation))}."
        )
    if name == "fused" and not (HAS_TRITON and torch.cuda.is_available()):
        require("numba", "fast", "The fused deformable attention on CPUs")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _check_shapes(
    value: Tensor, grids: Sequence[Grid], reference: Tensor | Grid, offsets: Tensor, logits: Tensor
) -> None:
    """Kernels read memory where shapes tell them to."""
    cells = sum(height * width for height, width in grids)
    if value.ndim != 4 or value.shape[1] != cells:
        raise ValueError(
            f"value has the shape {tuple(value.shape)}; with grids {list(grids)} it needs (B, {cells}, M, D)."
        )
    batch, _, heads, _ = value.shape
    if logits.ndim != 5 or (logits.shape[0], *logits.shape[2:4]) != (batch, heads, len(grids)):
        raise ValueError(
            f"logits has the shape {tuple(logits.shape)}; it needs ({batch}, Q, {heads}, {len(grids)}, P)."
        )
    if offsets.shape != (*logits.shape, 2):
        raise ValueError(
            f"offsets has the shape {tuple(offsets.shape)}; with these logits it needs {(*logits.shape, 2)}."
        )
    queries = logits.shape[1]
    if not isinstance(reference, Tensor):
        if reference[0] * reference[1] != queries:
            raise ValueError(f"reference is the grid {tuple(reference)}, but there are {queries} queries.")
    elif reference.shape[1:] != (queries, 2) or reference.shape[0] not in (1, batch):
        raise ValueError(
            f"reference has the shape {tuple(reference.shape)}; it needs (1 or {batch}, {queries}, 2)."
        )


def _uses_kernel(value: Tensor, logits: Tensor) -> bool:
    device = value.device.type
    if _chosen == "grid_sample" or value.dtype not in KERNEL_DTYPES.get(device, ()):
        return False
    if logits.shape[3] * logits.shape[4] > MOST_POINTS:
        return False
    if device == "cuda":
        return HAS_TRITON
    worth_it = torch.compiler.is_compiling() or logits.numel() >= FEWEST_SAMPLES
    return HAS_NUMBA and (_chosen == "fused" or worth_it)


def _fused(
    value: Tensor, grids: Sequence[Grid], reference: Tensor | Grid, offsets: Tensor, logits: Tensor
) -> Tensor:
    from piip.ops.fused import fused

    levels, first = [], 0
    for height, width in grids:
        levels += [height, width, first]
        first += height * width
    if isinstance(reference, Tensor):
        return fused(value, levels, reference, [], offsets, logits)
    return fused(value, levels, None, list(reference), offsets, logits)


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


def in_float32(device: torch.device) -> torch.autocast:
    """Return the context in which autocast leaves tensors as they are: heads run in float32, as the original's."""
    return torch.autocast(device.type, enabled=False)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or as it is where it is more precise."""
    return cast(tensor, torch.promote_types(tensor.dtype, torch.float32))
