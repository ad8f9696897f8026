"""Attention inside windows of the token grid (SPEC 4.5)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from piip.config import WindowPadding
from piip.recomputing import CheapModule
from piip.tokens import Grid


class Windows(NamedTuple):
    """How a grid is cut into windows: it is filled up at the bottom and right to whole windows."""

    grid: Grid
    size: int

    @property
    def counts(self) -> Grid:
        """Windows per column and row."""
        return -(-self.grid[0] // self.size), -(-self.grid[1] // self.size)

    def split(self, x: Tensor) -> Tensor:
        """Cut tokens (B, H * W, C) into windows (B * nH * nW, size * size, C), zeros where the grid ends."""
        (height, width), (rows, columns), size = self.grid, self.counts, self.size
        x = x.unflatten(1, self.grid)
        if (rows * size, columns * size) != self.grid:
            x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
        x = x.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3)
        return x.reshape(-1, size * size, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Undo `split`, dropping the filled-up places: (B * nH * nW, size * size, C) to (B, H * W, C)."""
        (height, width), (rows, columns), size = self.grid, self.counts, self.size
        x = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
        x = x.reshape(-1, rows * size, columns * size, x.shape[-1])
        return x[:, :height, :width].flatten(1, 2)


class SplitIntoWindows(CheapModule):
    """`Windows.split` as a module."""

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """Cut tokens (B, H * W, C) into windows (B * nH * nW, size * size, C)."""
        return windows.split(x)


class InWindows(nn.Module):
    """Applies attention inside windows; padded places are zero tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.split = SplitIntoWindows()

    def forward(self, attend: Callable[[Tensor], Tensor], x: Tensor, grid: Grid, size: int) -> Tensor:
        """Attend inside windows of ``size`` x ``size`` of the tokens (B, H * W, C) of a grid."""
        windows = Windows(grid, size)
        return windows.join(attend(self.split(x, windows)))


class GridBlock(Block):
    """A timm transformer block that knows the token grid, so that it can attend inside windows.

    The same parameters and names as timm's block. Every padded place takes part in the softmax, unmasked.

    Attributes:
        window_size: Side of the windows in tokens; None = global attention.
        window_padding: Fill windows up with zeros before the qkv projection (so that a padded key equals its
            bias) or after it (so that it is zero).
    """

    window_size: int | None = None
    window_padding: WindowPadding = "before_qkv"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.in_windows = InWindows()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Transform tokens (B, H * W, D) of a grid (H, W)."""
        x = x + self.drop_path1(self.ls1(self.attend(self.norm1(x), grid)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def attend(self, x: Tensor, grid: Grid) -> Tensor:
        """Self-attention of normalised tokens, in windows or over the whole grid."""
        if self.window_size is None:
            return self.attn(x, attn_mask=self.bias(grid))
        if self.window_padding == "after_qkv":
            return _attend_padded_after_qkv(self.attn, x, Windows(grid, self.window_size))
        bias = self.bias((self.window_size, self.window_size))
        return self.in_windows(lambda w: self.attn(w, attn_mask=bias), x, grid, self.window_size)

    def bias(self, grid: Grid) -> Any:
        """Return what is added to the attention logits inside a grid: nothing here."""
        return None


def _attend_padded_after_qkv(attention: Attention, x: Tensor, windows: Windows) -> Tensor:
    qkv = windows.split(attention.qkv(x)).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
    return attention.proj(windows.join(attended.transpose(1, 2).flatten(2)))
