"""Tokens of one branch: what flows between blocks, interactions and merging."""

from typing import NamedTuple

from torch import Tensor

Grid = tuple[int, int]
"""Height and width in tokens."""


class Tokens(NamedTuple):
    """The features of one branch.

    Attributes:
        x: Patch tokens in row-major order, (B, H * W, D).
        grid: (H, W).
        prefix: Class and register tokens that accompany the patches through the blocks, (B, P, D), or None.
    """

    x: Tensor
    grid: Grid
    prefix: Tensor | None = None

    def to_map(self) -> Tensor:
        """Return the patch tokens as a map, (B, D, H, W), channels last in memory."""
        return to_map(self.x, self.grid)


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """Return tokens (B, H * W, D) as a map (B, D, H, W), without a copy: channels last in memory.

    The order matters: of (B, D, H * W) torch would make a map of one image that it does not know as channels last.
    """
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def from_map(feature: Tensor) -> Tokens:
    """Return the tokens of a map (B, D, H, W)."""
    height, width = feature.shape[-2:]
    return Tokens(feature.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), (height, width))
