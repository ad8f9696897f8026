"""Branches from timm's VisionTransformer: DeiT, DeiT III, AugReg, MAE, DINOv2, CLIP, SigLIP, ..."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from piip.branches.base import Branch, drop_prefixed
from piip.branches.published import to_timm
from piip.branches.resampling import resample_patch_kernel, resample_positions, split_prefix
from piip.branches.windows import GridBlock
from piip.config import BranchConfig
from piip.errors import ConfigError
from piip.meta import on_meta
from piip.tokens import Grid, Tokens


class ViTBranch(Branch):
    """A plain vision transformer; keeps timm's parameter names.

    Position embeddings are stored at the pretraining grid and resampled to the image's at run time. There is no
    final norm and no head.
    """

    family = "vit"
    unused_prefixes = ("head", "norm.", "fc_norm.", "attn_pool.", "mask_token", "pre_logits.", "decoder")
    block_class: type[GridBlock] = GridBlock

    def __init__(self, config: BranchConfig) -> None:
        super().__init__(config)
        trunk = self.build_trunk(self.trunk_options())
        self.patch_embed = trunk.patch_embed
        self.pos_embed = trunk.pos_embed
        self.cls_token = trunk.cls_token
        self.reg_token = getattr(trunk, "reg_token", None)
        self.norm_pre = trunk.norm_pre
        self.blocks = nn.ModuleList(trunk.blocks)
        self.num_prefix_tokens: int = trunk.num_prefix_tokens
        self.embed_dim: int = trunk.embed_dim
        self._check_depth()
        self._check_settings()
        self._configure_blocks()
        if config.prefix_tokens and not self.num_prefix_tokens:
            raise ConfigError(f"{config.arch} has no class or register tokens; leave prefix_tokens off.")
        self.patch_size = int(self.patch_embed.patch_size[0])
        self.dims = (self.embed_dim,) * len(self.blocks)
        self.strides = (self.patch_size,) * len(self.blocks)

    @classmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether ``arch`` is a plain VisionTransformer of timm."""
        return timm.models.is_model_in_modules(arch, {"vision_transformer", "deit"}) and (
            "distilled" not in arch
        )

    @classmethod
    def count_blocks(cls, arch: str, options: Mapping[str, Any]) -> int:
        """Return the number of blocks of an architecture with constructor ``options``."""
        with on_meta():
            return len(create_timm(arch, nn.Module, options).blocks)

    def build_trunk(self, options: dict[str, Any]) -> Any:
        """Return a timm model whose parts become this branch."""
        return create_timm(self.config.arch, VisionTransformer, options)

    def trunk_options(self) -> dict[str, Any]:
        """Return the constructor arguments that the configuration implies."""
        options: dict[str, Any] = {"global_pool": "", "fc_norm": False, "final_norm": False}
        if self.config.patch_size is not None:
            options["patch_size"] = self.config.patch_size
        if not self.config.prefix_tokens:
            options |= {"class_token": False, "reg_tokens": 0}
        if self.config.window_size is not None or self.block_class is not GridBlock:
            options["block_fn"] = self.block_class
        return options | dict(self.config.options)

    def embed(self, image: Tensor) -> Tokens:
        """Return the tokens of an image (B, 3, H, W); incomplete patches at the far edges are dropped."""
        feature = self.patch_embed.proj(image)
        grid = (feature.shape[2], feature.shape[3])
        # Once contiguous, every block's residual sum keeps the layout; else each norm would copy the tokens.
        x = self.patch_embed.norm(feature.flatten(2).transpose(1, 2).contiguous())
        prefix = self._prefix(len(image))
        if self.pos_embed is not None:
            prefix_positions, positions = self._positions(grid)
            x = x + positions.to(x.dtype)
            if prefix is not None and prefix_positions.shape[1]:
                prefix = prefix + prefix_positions
        prefix = self.norm_pre(prefix).to(x.dtype) if prefix is not None else None
        return Tokens(self.norm_pre(x), grid, prefix)

    def run(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Run the blocks ``start`` to ``stop`` (exclusive), prefix tokens in front of the patches."""
        x, grid, prefix = tokens
        if prefix is not None:
            x = torch.cat([prefix, x], dim=1)
        for index in range(start, stop):
            x = self.run_block(index, x, grid)
        if prefix is not None:
            prefix, x = x.split([prefix.shape[1], x.shape[1] - prefix.shape[1]], dim=1)
        return Tokens(x, grid, prefix)

    def run_block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Run one block on tokens (B, P + H * W, D)."""
        block = self.blocks[index]
        return self._call(block, x, grid) if isinstance(block, GridBlock) else self._call(block, x)

    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint of timm, DeiT, MAE, DINOv2 or InternViT under timm's names and at this size."""
        state = drop_prefixed(self.timm_names(state_dict), self.unused_prefixes)
        if self.cls_token is None:
            state.pop("cls_token", None)
        if self.reg_token is None:
            state.pop("reg_token", None)
        if "patch_embed.proj.weight" in state:
            kernel = state["patch_embed.proj.weight"]
            state["patch_embed.proj.weight"] = resample_patch_kernel(kernel, self.patch_size)
        if "pos_embed" in state and self.pos_embed is not None:
            state["pos_embed"] = self._adapt_positions(state["pos_embed"])
        return state

    def timm_names(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published checkpoint under the names of this branch's timm class."""
        return to_timm(state_dict)

    def _check_settings(self) -> None:
        height, width = self.patch_embed.grid_size
        if self.pos_embed is not None and height != width:
            raise ConfigError(
                f"img_size of {self.config.arch} gives a grid of {height} x {width} position embeddings; give the "
                "side of a square, images may still have any shape."
            )
        if self.config.window_padding == "after_qkv" and self.family != "vit":
            raise ConfigError(
                f"{self.config.arch} pads its windows before the projection only; leave window_padding out."
            )

    def _configure_blocks(self) -> None:
        rates = self.config.drop_path_rates()
        settings = zip(self.blocks, rates, self.config.window_sizes(), strict=True)
        for block, rate, window_size in settings:
            set_drop_path(block, rate)
            if isinstance(block, GridBlock):
                block.window_size = window_size
                block.window_padding = self.config.window_padding

    def _prefix(self, batch: int) -> Tensor | None:
        parts = [
            token.expand(batch, -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        return torch.cat(parts, dim=1) if parts else None

    def _positions(self, grid: Grid) -> tuple[Tensor, Tensor]:
        prefix, patches = split_prefix(self.pos_embed)
        return prefix, resample_positions(patches, grid)

    def _adapt_positions(self, positions: Tensor) -> Tensor:
        prefix, patches = split_prefix(positions)
        own_prefix, own = split_prefix(self.pos_embed)
        side = round(own.shape[1] ** 0.5)
        patches = resample_positions(patches, (side, side)).to(positions.dtype)
        return torch.cat([prefix, patches], dim=1) if own_prefix.shape[1] else patches


def create_timm(arch: str, expected: type[nn.Module], options: Mapping[str, Any]) -> Any:
    """Build a timm model without its classifier.

    Raises:
        ConfigError: timm refuses the options or the architecture's blocks cannot take windows.
    """
    if "block_fn" in options:
        with on_meta():
            plain = timm.create_model(arch, num_classes=0)
        if type(plain.blocks[0]) is not Block:
            raise ConfigError(
                f"{arch} has blocks of its own kind ({type(plain.blocks[0]).__name__}), which cannot attend in "
                "windows; leave window_size off or choose a plain ViT."
            )
    try:
        model = timm.create_model(arch, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{arch} cannot be built with options {dict(options)}: {error}.") from error
    if not isinstance(model, expected):
        raise ConfigError(f"{arch} is a {type(model).__name__}, not a {expected.__name__}.")
    return model


def set_drop_path(block: nn.Module, rate: float) -> None:
    """Give every residual branch of a transformer block (parallel ones have several) a stochastic depth rate."""
    places = [name.rpartition(".") for name, _ in block.named_modules()]
    for parent, _, name in places:
        if name.startswith("drop_path"):
            setattr(block.get_submodule(parent), name, DropPath(rate) if rate else nn.Identity())
