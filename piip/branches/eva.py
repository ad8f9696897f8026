"""Branches from timm's Eva: DINOv3 and EVA-02, with rotary positions."""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

from piip.branches.vit import ViTBranch, create_timm
from piip.branches.windows import InWindows
from piip.errors import ConfigError
from piip.tokens import Grid


class EvaBranch(ViTBranch):
    """A vision transformer with rotary (and, in EVA-02, also absolute) position embeddings."""

    family = "eva"

    @classmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether ``arch`` is an Eva of timm."""
        return timm.models.is_model_in_modules(arch, {"eva"})

    def build_trunk(self, options: dict[str, Any]) -> Any:
        """Return timm's model; its rotary embedding becomes part of the branch."""
        trunk = create_timm(self.config.arch, Eva, {"dynamic_img_size": True} | options)
        if trunk.rope_mixed or not isinstance(trunk.blocks[0], EvaBlock):
            raise ConfigError(
                f"{self.config.arch} has rotary positions per block or norms after its residuals, which no "
                "branch supports; choose a DINOv3 or EVA-02 architecture."
            )
        self.rope = trunk.rope
        for index, size in enumerate(self.config.window_sizes()[: len(trunk.blocks)]):
            if size is not None:
                trunk.blocks[index] = WindowedEvaBlock(trunk.blocks[index], size)
        return trunk

    def trunk_options(self) -> dict[str, Any]:
        """Return the constructor arguments that the configuration implies."""
        options: dict[str, Any] = {
            "global_pool": "",
            "use_fc_norm": False,
            "use_post_transformer_norm": False,
        }
        if self.config.patch_size is not None:
            options["patch_size"] = self.config.patch_size
        if not self.config.prefix_tokens:
            options |= {"class_token": False, "num_reg_tokens": 0}
        return options | dict(self.config.options)

    def run_block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Run one block on tokens (B, P + H * W, D)."""
        block = self.blocks[index]
        if isinstance(block, WindowedEvaBlock):
            return self._call(block, x, grid, self._rotation(grid, (block.window_size,) * 2))
        return self._call(block, x, self._rotation(grid, grid))

    def timm_names(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the checkpoint as it is: timm's Eva has its own names for layer scales."""
        return dict(state_dict)

    def _rotation(self, grid: Grid, part: Grid) -> Tensor | None:
        """Return the rotation of a part of the grid: only differences of positions matter to attention."""
        if self.rope is None:
            return None
        rows, columns = max(grid[0], part[0]), max(grid[1], part[1])
        rotation = self.rope.get_embed(shape=(rows, columns))
        if part == (rows, columns):
            return rotation
        return rotation.unflatten(-2, (rows, columns))[..., : part[0], : part[1], :].flatten(-3, -2)


class WindowedEvaBlock(nn.Module):
    """The parts of a timm EvaBlock, under their own names, with the attention inside windows.

    Args:
        block: The block whose parts it takes over.
        window_size: Side of the windows in tokens.
    """

    def __init__(self, block: EvaBlock, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.in_windows = InWindows()
        self.norm1, self.attn, self.gamma_1 = block.norm1, block.attn, block.gamma_1
        self.norm2, self.mlp, self.gamma_2 = block.norm2, block.mlp, block.gamma_2
        self.drop_path1, self.drop_path2 = block.drop_path1, block.drop_path2

    def forward(self, x: Tensor, grid: Grid, rotation: Tensor | None) -> Tensor:
        """Transform tokens (B, H * W, D) of a grid (H, W) with the rotation of a window's places."""
        attended = self.in_windows(
            lambda w: self.attn(w, rope=rotation), self.norm1(x), grid, self.window_size
        )
        x = x + self.drop_path1(attended if self.gamma_1 is None else self.gamma_1 * attended)
        hidden = self.mlp(self.norm2(x))
        return x + self.drop_path2(hidden if self.gamma_2 is None else self.gamma_2 * hidden)
