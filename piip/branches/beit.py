"""BEiT v2: no absolute positions, a relative position bias in every block (SPEC 4.3)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.branches.own import build_vision_transformer
from piip.branches.relative_position import resample_bias_table
from piip.branches.vit import ViTBranch
from piip.branches.windows import GridBlock
from piip.config import BranchConfig
from piip.errors import ConfigError
from piip.meta import on_meta
from piip.tokens import Grid


class RelativePositionBias(nn.Module):
    """A learned attention bias for every offset between two tokens of a window.

    Args:
        side: Side w of the window whose offsets the table holds.
        num_heads: Attention heads.
    """

    def __init__(self, side: int, num_heads: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))

    def forward(self, grid: Grid) -> Tensor:
        """Return the bias of a grid (H, W), (1, heads, H * W, H * W).

        A grid of another size than the table's stretches the table over its offsets (bicubic).
        """
        height, width = grid
        table = self.table.view(2 * self.side - 1, 2 * self.side - 1, -1).permute(2, 0, 1)[None]
        offsets = (2 * height - 1, 2 * width - 1)
        if table.shape[-2:] != offsets:
            table = F.interpolate(table, size=offsets, mode="bicubic", align_corners=True)
        y = torch.arange(height, device=table.device)
        x = torch.arange(width, device=table.device)
        rows = (y[:, None] - y + height - 1)[:, None, :, None]
        columns = (x[:, None] - x + width - 1)[None, :, None, :]
        return table[:, :, rows, columns].flatten(4, 5).flatten(2, 3)


class BeitBlock(GridBlock):
    """A transformer block whose attention adds a relative position bias."""

    def __init__(self, *args: Any, side: int, num_heads: int, **options: Any) -> None:
        super().__init__(*args, num_heads=num_heads, **options)
        self.position_bias = RelativePositionBias(side, num_heads)

    def bias(self, grid: Grid) -> Tensor:
        """Return the bias of a grid or window (H, W), (1, heads, H * W, H * W)."""
        return self.position_bias(grid)


class BeitBranch(ViTBranch):
    """BEiT without its class token.

    The original's separate q and v biases are one qkv bias whose k part is zero: a constant added to every key
    does not change a softmax.
    """

    family = "beit"
    block_class = BeitBlock

    @classmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether ``arch`` is a BEiT of timm."""
        return timm.models.is_model_in_modules(arch, {"beit"})

    def build_trunk(self, options: dict[str, Any]) -> Any:
        """Return a VisionTransformer of the architecture's shape with `BeitBlock`s."""
        if self.config.prefix_tokens:
            raise ConfigError(f"{self.config.arch} runs without its class token; leave prefix_tokens off.")
        shape_options = {k: v for k, v in self.config.options.items() if k != "img_size"}
        with on_meta():
            shape = timm.create_model(self.config.arch, num_classes=0, **shape_options)
        block = shape.blocks[0]
        if not hasattr(block.mlp, "fc1") or block.attn.relative_position_bias_table is None:
            raise ConfigError(f"{self.config.arch} is no BEiT with a relative position bias per block.")
        self.table_side = _table_side(self.config, shape.patch_embed.grid_size[0])
        return build_vision_transformer(
            self.config.arch,
            {
                "img_size": 224,
                "embed_dim": shape.embed_dim,
                "depth": len(shape.blocks),
                "num_heads": block.attn.num_heads,
                "mlp_ratio": block.mlp.fc1.out_features / shape.embed_dim,
                "init_values": block.init_values or 1e-6,
                "pos_embed": "none",
            }
            | options
            | {"block_fn": partial(BeitBlock, side=self.table_side)},
        )

    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint of BEiT (timm's or the original's) under this branch's names."""
        state = super().adapt_state_dict(state_dict)
        shared = state.pop("rel_pos_bias.relative_position_bias_table", None)
        state = {key: value for key, value in state.items() if not key.endswith("relative_position_index")}
        for index in range(len(self.blocks)):
            table = state.pop(f"blocks.{index}.attn.relative_position_bias_table", shared)
            if table is not None:
                state[f"blocks.{index}.position_bias.table"] = resample_bias_table(table, self.table_side)
            q_bias = state.pop(f"blocks.{index}.attn.q_bias", None)
            v_bias = state.pop(f"blocks.{index}.attn.v_bias", None)
            if q_bias is not None and v_bias is not None:
                bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
                state[f"blocks.{index}.attn.qkv.bias"] = bias
            state.pop(f"blocks.{index}.attn.k_bias", None)
        return state


def _table_side(config: BranchConfig, default: int) -> int:
    sizes = {size for size in config.window_sizes() if size is not None}
    if len(sizes) > 1:
        raise ConfigError(f"window_size of {config.arch} mixes {sorted(sizes)}; BEiT blocks share one size.")
    return sizes.pop() if sizes else default
