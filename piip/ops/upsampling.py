"""Upsampling by transposed 2x2 convolutions of stride 2, whose windows do not overlap.

Each is a matrix product that makes four cells of every cell, and a shuffle that puts them into place.
"""

from typing import Any

import torch
from torch import Tensor

from piip.ops.onednn import as_autocast, grad_weight, is_watched, linear

ENTRIES_AT_ONCE = 1 << 23
"""Entries of a map's gradient that the backward pass copies at a time."""


def split_cells(cells: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the four parts of cells: upper left and right, lower left and right.

    Args:
        cells: (B, N, K).
        weight: (K, D, 2, 2), that of a transposed convolution.
        bias: (D), or None.

    Returns:
        (B, N, 4, D).
    """
    return linear(cells, *_matrix(weight, bias)).unflatten(-1, (4, -1))


def split_into_map(cells: Tensor, weight: Tensor, bias: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Split cells once more and put all parts into place.

    The backward pass never has a whole copy of the gradient, which is by far the largest tensor of a pyramid.

    Args:
        cells: (B, H * W * 4^n, K), the cells of a grid after n splits.
        weight: (K, D, 2, 2), that of a transposed convolution.
        bias: (D), or None.
        grid: H and W.

    Returns:
        The map (B, D, 2^(n + 1) H, 2^(n + 1) W), channels last.
    """
    matrix, repeated = _matrix(weight, bias)
    if torch.is_grad_enabled() and not is_watched():
        placed: Tensor = _SplitIntoMap.apply(as_autocast(cells), matrix, repeated, grid)
        return placed
    return _put_in_place(linear(cells, matrix, repeated), grid)


def _matrix(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4) if bias is not None else None


def _put_in_place(parts: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the map (B, D, 2^n H, 2^n W), channels last, of parts (B, H * W * 4^(n - 1), 4 D)."""
    splits = _splits(parts.shape[1], grid)
    parts = parts.view(len(parts), *grid, *(2, 2) * splits, -1)
    last = parts.ndim - 1
    rows, columns = (1, *range(3, last, 2)), (2, *range(4, last, 2))
    placed = parts.permute(0, *rows, *columns, last).flatten(1 + len(rows), -2).flatten(1, len(rows))
    return placed.permute(0, 3, 1, 2)


def _in_order(placed: Tensor, grid: tuple[int, int], splits: int) -> Tensor:
    """Return a view of a map as its parts, (B, H, W, 2, 2, ..., 2, 2, D): the reverse of `_put_in_place`."""
    halves = (2,) * splits
    parts = placed.permute(0, 2, 3, 1).unflatten(2, (grid[1], *halves)).unflatten(1, (grid[0], *halves))
    rows, columns = range(1, splits + 2), range(splits + 2, 2 * splits + 3)
    pairs = [axis for pair in zip(rows, columns, strict=True) for axis in pair]
    return parts.permute(0, *pairs, 2 * splits + 3)


def _splits(cells: int, grid: tuple[int, int]) -> int:
    """Return how often cells will have been split when each has been split once more."""
    return (cells // (grid[0] * grid[1])).bit_length() // 2 + 1


class _SplitIntoMap(torch.autograd.Function):
    """A product and its shuffle. The backward pass goes through the rows of the grid, some at a time."""

    @staticmethod
    def forward(
        ctx: Any, cells: Tensor, matrix: Tensor, bias: Tensor | None, grid: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(cells, matrix)
        ctx.grid, ctx.bias_dtype = grid, bias.dtype if bias is not None else None
        return _put_in_place(linear(cells, matrix, bias), grid)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cells, matrix = ctx.saved_tensors
        needs_cells, needs_matrix, needs_bias, _ = ctx.needs_input_grad
        weight = matrix.to(cells.dtype)
        parts = _in_order(gradient, ctx.grid, _splits(cells.shape[1], ctx.grid))
        rows = max(ENTRIES_AT_ONCE * ctx.grid[0] // max(gradient.numel(), 1), 1)
        seen = cells.unflatten(1, (ctx.grid[0], -1)).split(rows, 1)
        to_cells = []
        to_matrix = torch.zeros_like(matrix)
        to_bias = torch.zeros(len(matrix), dtype=ctx.bias_dtype, device=matrix.device) if needs_bias else None

        def take(part: Tensor, seen: Tensor) -> None:
            nonlocal to_matrix, to_bias
            flat = part.reshape(-1, len(matrix))
            if needs_cells:
                to_cells.append(linear(flat, weight.t()).view(seen.shape))
            if needs_matrix:
                to_matrix = to_matrix + grad_weight(flat, seen.reshape(-1, seen.shape[-1]))
            if to_bias is not None:
                to_bias = to_bias + flat.sum(0, dtype=to_bias.dtype)

        for pair in zip(parts.split(rows, 1), seen, strict=True):
            take(*pair)  # a function, so that no copy outlives its turn
        return (
            torch.cat(to_cells, 1).flatten(1, 2) if needs_cells else None,
            to_matrix if needs_matrix else None,
            to_bias,
            None,
        )
