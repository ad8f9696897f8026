"""Position embeddings and patch kernels at another size: always bicubic, never antialiased (SPEC 3.2, 12)."""

import math

import torch.nn.functional as F
from torch import Tensor

from piip.ops import at_least_float32
from piip.tokens import Grid


def resample_positions(positions: Tensor, grid: Grid) -> Tensor:
    """Resample patch position embeddings.

    Args:
        positions: Embeddings of a square grid, row-major, (1, G * G, D).
        grid: Wanted (H, W).

    Returns:
        (1, H * W, D) in at least float32.
    """
    side = square_side(positions.shape[1])
    square = at_least_float32(positions).transpose(1, 2).unflatten(2, (side, side))
    resampled = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return resampled.flatten(2).transpose(1, 2)


def resample_patch_kernel(kernel: Tensor, patch_size: int) -> Tensor:
    """Resample a patch embedding's kernel (D, 3, p, p) to another patch side, in its own dtype."""
    if kernel.shape[-2:] == (patch_size, patch_size):
        return kernel
    resampled = F.interpolate(
        at_least_float32(kernel), size=(patch_size, patch_size), mode="bicubic", align_corners=False
    )
    return resampled.to(kernel.dtype)


def split_prefix(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Split position embeddings (1, P + G * G, D) into those of P prefix tokens and of the patches."""
    count = positions.shape[1]
    prefix = next((p for p in range(min(count, 8)) if square_side(count - p, strict=False)), None)
    if prefix is None:
        raise ValueError(
            f"{count} position embeddings are not a square grid with up to seven tokens before it."
        )
    return positions[:, :prefix], positions[:, prefix:]


def square_side(count: int, strict: bool = True) -> int:
    """Return the side of a square of ``count`` cells; without ``strict`` 0 if there is none."""
    side = math.isqrt(count)
    if side * side == count:
        return side
    if strict:
        raise ValueError(f"{count} is not the number of cells of a square grid.")
    return 0
