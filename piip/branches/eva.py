"""Branches from timm's Eva: DINOv3 and EVA-02, with rotary positions."""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models.eva import Eva, EvaBlock
from torch import Tensor

from piip.branches.vit import ViTBranch, create_timm
from piip.branches.windows import windowed
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
        size = self.config.window_sizes()[index]
        block = self.blocks[index]
        if size is None:
            return self._call(block, x, self._rotation(grid, grid))
        return self._call(_WindowedEvaBlock(block, size), x, grid, self._rotation(grid, (size, size)))

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


class _WindowedEvaBlock:
    """Runs a timm EvaBlock with its attention inside windows."""

    def __init__(self, block: EvaBlock, size: int) -> None:
        self.block, self.size = block, size

    def __call__(self, x: Tensor, grid: Grid, rotation: Tensor | None) -> Tensor:
        block = self.block
        attended = windowed(lambda w: block.attn(w, rope=rotation), block.norm1(x), grid, self.size)
        x = x + block.drop_path1(attended if block.gamma_1 is None else block.gamma_1 * attended)
        hidden = block.mlp(block.norm2(x))
        return x + block.drop_path2(hidden if block.gamma_2 is None else block.gamma_2 * hidden)
