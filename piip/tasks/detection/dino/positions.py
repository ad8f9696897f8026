"""Where tokens and boxes are: padding, sine embeddings, and boxes as logits (HEADS.md 4.2, 4.4, 4.5)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from piip.tasks.detection.anchors import Size

EDGE = 1e-3
"""Boxes are kept this far from 0 and 1 where they become logits."""


class Places(NamedTuple):
    """What is known of the tokens of all levels; B images, S tokens, L levels."""

    grids: list[Size]
    padded: Tensor  # (B, S), True outside of the image
    embedding: Tensor  # (B, S, D)
    centres: Tensor  # (B, S, 2), (x, y), 0 to 1 over the image's part of the level
    valid: Tensor  # (B, L, 2), that part's width and height relative to the level
    levels: Tensor  # (S,) index of each token's level


def locate(
    grids: Sequence[Size], sizes: Sequence[Size], batch: Size, dim: int, device: torch.device
) -> Places:
    """Describe the tokens of a batch.

    Args:
        grids: Height and width of every level in tokens.
        sizes: (height, width) of the images without padding, in pixels.
        batch: (height, width) of the padded batch.
        dim: Width D of the position embedding.
        device: Where to.
    """
    inside = torch.zeros(len(sizes), 1, *batch, device=device)
    for mask, (height, width) in zip(inside, sizes, strict=True):
        mask[0, :height, :width] = 1
    padded, embedding, centres, valid = [], [], [], []
    for grid in grids:
        level = F.interpolate(inside, size=grid, mode="nearest")[:, 0]
        padded.append((level == 0).flatten(1))
        embedding.append(sine_positions(level, dim).flatten(1, 2))
        extent = torch.stack([level[:, 0].sum(1), level[:, :, 0].sum(1)], -1)
        y, x = (torch.arange(n, device=device) + 0.5 for n in grid)
        cells = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).flatten(0, 1)
        centres.append(cells[None] / extent[:, None])
        valid.append(extent / extent.new_tensor([grid[1], grid[0]]))
    levels = [torch.full((height * width,), i, device=device) for i, (height, width) in enumerate(grids)]
    return Places(
        list(grids),
        torch.cat(padded, 1),
        torch.cat(embedding, 1),
        torch.cat(centres, 1),
        torch.stack(valid, 1),
        torch.cat(levels),
    )


def sine_positions(inside: Tensor, dim: int) -> Tensor:
    """Return the position embedding (B, H, W, dim) of the cells of images.

    Args:
        inside: 1 in the image, 0 in its padding, (B, H, W).
        dim: Half of the features tell the row, the other half the column.
    """
    rows, columns = inside.cumsum(1), inside.cumsum(2)
    rows = rows / (rows[:, -1:] + 1e-6)
    columns = columns / (columns[:, :, -1:] + 1e-6)
    return torch.cat([sine(place, dim // 2, 20) for place in (rows, columns)], dim=-1)


def sine_boxes(boxes: Tensor, dim: int) -> Tensor:
    """Return the embedding (..., 2 * dim) of boxes (..., 4) as centre and size, in the order y, x, w, h."""
    x, y, width, height = boxes.unbind(-1)
    return torch.cat([sine(part, dim // 2, 10000) for part in (y, x, width, height)], dim=-1)


def sine(place: Tensor, features: int, temperature: float) -> Tensor:
    """Return sines and cosines (..., features), interleaved, of places (...) from 0 to 1."""
    index = torch.arange(features, dtype=torch.float32, device=place.device)
    period = temperature ** (2 * (index // 2) / features)
    angle = place[..., None] * (2 * math.pi) / period
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)


def inverse_sigmoid(place: Tensor, edge: float = EDGE) -> Tensor:
    """Return the logits of numbers from 0 to 1, kept ``edge`` away from both."""
    place = place.clamp(0, 1)
    return (place.clamp(min=edge) / (1 - place).clamp(min=edge)).log()


def first_guesses(places: Places) -> tuple[Tensor, Tensor]:
    """Return a box at every token as logits of centre and size (B, S, 4), and which of them are no box (B, S).

    Boxes in the padding or too near to the border of the image are none; their logits are infinite.
    """
    side = (0.05 * 2.0**places.levels).expand(len(places.centres), -1)[..., None].expand(-1, -1, 2)
    boxes = torch.cat([places.centres, side.to(places.centres.dtype)], dim=-1)
    impossible = places.padded | ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    logits = (boxes / (1 - boxes)).log()
    return logits.masked_fill(impossible[..., None], math.inf), impossible
