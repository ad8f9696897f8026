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
        """Return the patch tokens as a map, (B, D, H, W)."""
        return self.x.transpose(1, 2).unflatten(2, self.grid)


def from_map(feature: Tensor) -> Tokens:
    """Return the tokens of a map (B, D, H, W)."""
    height, width = feature.shape[-2:]
    return Tokens(feature.flatten(2).transpose(1, 2), (height, width))
