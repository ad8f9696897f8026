"""Branches from timm's ConvNeXt (SPEC 5.1, 5.2)."""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from piip.branches.base import Branch, drop_prefixed
from piip.branches.published import to_timm
from piip.branches.vit import create_timm
from piip.config import BranchConfig
from piip.errors import ConfigError
from piip.meta import on_meta
from piip.tokens import Tokens, from_map


class ConvNeXtBranch(Branch):
    """A ConvNeXt as a flat list of blocks: every stage's downsampling, if any, then its layers."""

    family = "convnext"
    unused_prefixes = ("head.", "norm_pre.")

    def __init__(self, config: BranchConfig) -> None:
        super().__init__(config)
        for name in ("window_size", "patch_size"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{config.arch} is a ConvNeXt and has no {name}; leave it out.")
        if config.prefix_tokens or config.drop_path_decay != "linear":
            raise ConfigError(
                f"{config.arch} is a ConvNeXt: prefix_tokens must be off and drop_path_decay 'linear'."
            )
        options: dict[str, Any] = {"drop_path_rate": config.drop_path_rate} | dict(config.options)
        trunk = create_timm(config.arch, ConvNeXt, options)
        self.stem = trunk.stem
        self.stage_of_block: list[tuple[int, int | None]] = []
        blocks, dims, strides = [], [], []
        for stage, (module, info) in enumerate(zip(trunk.stages, trunk.feature_info, strict=True)):
            for layer, block in _layers(module):
                self.stage_of_block.append((stage, layer))
                blocks.append(block)
                dims.append(info["num_chs"])
                strides.append(info["reduction"])
        self.blocks = nn.ModuleList(blocks)
        self.dims, self.strides = tuple(dims), tuple(strides)
        self._check_depth()

    @classmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether ``arch`` is a ConvNeXt of timm."""
        return timm.models.is_model_in_modules(arch, {"convnext"})

    @classmethod
    def count_blocks(cls, arch: str, options: Mapping[str, Any]) -> int:
        """Return the number of layers and downsamplings of an architecture with constructor ``options``."""
        with on_meta():
            trunk = create_timm(arch, ConvNeXt, options)
        return sum(len(layers) for layers in map(_layers, trunk.stages))

    def embed(self, image: Tensor) -> Tokens:
        """Return the tokens of an image (B, 3, H, W) after the stem."""
        return from_map(self.stem(image))

    def run(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        """Run the blocks ``start`` to ``stop`` (exclusive); the grid shrinks at downsampling blocks."""
        feature = tokens.to_map()
        for block in self.blocks[start:stop]:
            feature = self._call(block, feature)
        return from_map(feature)

    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint in timm's names under this branch's flat names."""
        names = {
            self._timm_prefix(stage, layer): index for index, (stage, layer) in enumerate(self.stage_of_block)
        }
        adapted = {}
        for key, value in drop_prefixed(to_timm(state_dict), self.unused_prefixes).items():
            parts = key.split(".")
            length = 4 if parts[2:3] == ["blocks"] else 3
            index = names.get(".".join(parts[:length]))
            adapted[key if index is None else ".".join(["blocks", str(index), *parts[length:]])] = value
        return adapted

    @staticmethod
    def _timm_prefix(stage: int, layer: int | None) -> str:
        return f"stages.{stage}.downsample" if layer is None else f"stages.{stage}.blocks.{layer}"


def _layers(stage: Any) -> list[tuple[int | None, nn.Module]]:
    layers: list[tuple[int | None, nn.Module]] = list(enumerate(stage.blocks))
    downsamples = not isinstance(stage.downsample, nn.Identity)
    return [(None, stage.downsample), *layers] if downsamples else layers
