"""Where the queries of deformable attention look from: references over the map, 0 to 1, and in pixels of a level.

Shapes as in `piip.ops.deformable`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from piip.tokens import Grid


def reference_points(grid: Grid, device: torch.device) -> Tensor:
    """Return the centres (x, y) of a grid's tokens, 0 to 1 over the map, (1, H * W, 2), exact to float64.

    Args:
        grid: Height and width in tokens.
        device: Where to; float32 on devices without float64.
    """
    dtype = torch.float32 if device.type == "mps" else torch.float64
    height, width = grid
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)[None]


def split_pixels(reference: Tensor, levels: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the pixel left of and above each reference, int64, and its distance from it, (R, Q, L, 2) both.

    Float32 then has a pixel's neighbourhood to itself: the error is a tenth of that of normalised coordinates.

    Args:
        reference: (x, y) from 0 to 1, (R, Q, 2).
        levels: Height, width and first cell of every level, one after the other.
        dtype: Of the distance.
    """
    sizes = torch.tensor([levels[1::3], levels[0::3]], dtype=torch.float64, device=reference.device).T
    pixels = reference.double()[:, :, None] * sizes - 0.5
    whole = pixels.floor()
    return whole.long(), (pixels - whole).to(dtype)
