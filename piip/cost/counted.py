"""Single branches as the papers count them (CONVENTION.md, sections 1, 2 and 4)."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import nn

from piip.branches import build_branch
from piip.branches.base import Branch
from piip.branches.convnext import ConvNeXtBranch
from piip.branches.vit import ViTBranch
from piip.config import BranchConfig
from piip.cost.conventions import Convention, Script
from piip.cost.table import PartCost
from piip.meta import on_meta

NUM_CLASSES = 1000


def part(name: str, macs: int, params: int = 0) -> PartCost:
    """Return a part whose parameters are all trained."""
    return PartCost(name, macs, params, params)


def count_params(*modules: nn.Module | nn.Parameter | None) -> int:
    """Return the number of parameters of modules."""
    tensors = [[m] if isinstance(m, nn.Parameter) else m.parameters() for m in modules if m is not None]
    return sum(tensor.numel() for group in tensors for tensor in group)


def hooked_macs(module: nn.Module, positions: Callable[[str], int], norms: bool = True) -> int:
    """Return what the scripts' hooks see of a module.

    Args:
        module: The module.
        positions: Number of positions (tokens) at which the submodule of a name is applied.
        norms: Count LayerNorms; those of ConvNeXt are of a class that the hooks do not see.
    """
    total = 0
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            total += positions(name) * layer.weight.numel()
        elif isinstance(layer, nn.Conv2d):
            total += positions(name) * count_params(layer)
        elif norms and isinstance(layer, nn.LayerNorm):
            total += positions(name) * 2 * layer.weight.numel()
    return total


@dataclass(frozen=True)
class CountedBranch(ABC):
    """A branch at its nominal image size.

    Attributes:
        config: Its description.
        network: The branch on the meta device.
        script: The script that counts it.
        convention: Further rules.
        idle_blocks: Blocks whose linear layers and norms are not counted.
    """

    config: BranchConfig
    network: Branch
    script: Script
    convention: Convention
    idle_blocks: int

    def cells(self, block: int) -> int:
        """Return the number of patch tokens after a block."""
        return self._side(block) ** 2

    def dim(self, block: int) -> int:
        """Return the width after a block."""
        return self.network.dims[block]

    @abstractmethod
    def parts(self) -> list[PartCost]:
        """Return the parts ``embed``, ``blocks`` and, of transformers, ``attn``."""

    @abstractmethod
    def head(self, alone: bool) -> PartCost:
        """Return the head of a branch that has its own; the script's baselines (``alone``) norm every token."""

    def _side(self, block: int) -> int:
        return self.config.image_size // self.network.strides[block]


class CountedConvNeXt(CountedBranch):
    """A ConvNeXt, whose norms are free; in mmdetection its unused final norm is a parameter."""

    def parts(self) -> list[PartCost]:
        """Return the parts ``embed`` and ``blocks``."""
        network = self.network
        stem = network.get_submodule("stem")
        unused_norm = 2 * network.dims[-1] if self.script == "mmdetection" else 0
        blocks = sum(self._block(index) for index in range(len(network.blocks)))
        return [
            part("embed", hooked_macs(stem, lambda _: self.cells(0), norms=False), count_params(stem)),
            part("blocks", blocks, count_params(network.blocks) + unused_norm),
        ]

    def head(self, alone: bool) -> PartCost:
        """Return a free norm and the classifier."""
        dim = self.network.dims[-1]
        return part("head", dim * NUM_CLASSES, 2 * dim + (dim + 1) * NUM_CLASSES)

    def _block(self, index: int) -> int:
        return hooked_macs(self.network.blocks[index], lambda _: self.cells(index), norms=False)


class CountedViT(CountedBranch):
    """A plain vision transformer."""

    @property
    def vit(self) -> ViTBranch:
        """The transformer on the meta device."""
        assert isinstance(self.network, ViTBranch)
        return self.network

    @property
    def deit_class(self) -> bool:
        """Whether the original uses its DeiT class: constant stochastic depth and layer scales (SPEC 4.1)."""
        return self.config.drop_path_decay == "constant" and hasattr(self.vit.blocks[0].ls1, "gamma")

    @property
    def layernorm(self) -> bool:
        """Whether its norms are counted."""
        return self.convention.layernorm or isinstance(self.vit.blocks[0].norm1, nn.LayerNorm)

    def parts(self) -> list[PartCost]:
        """Return the parts ``embed``, ``blocks`` and ``attn``."""
        vit, cells = self.vit, self.cells(0)
        windows = self.config.window_sizes()
        blocks = [self._block(index, window) for index, window in enumerate(windows)]
        attention = sum(2 * cells * (window**2 if window else cells) * vit.embed_dim for window in windows)
        embed = cells * count_params(vit.patch_embed)
        if self.script == "llava":
            embed += hooked_macs(vit.norm_pre, lambda _: self._tokens())
        embedded = count_params(vit.patch_embed, vit.cls_token, vit.reg_token, vit.norm_pre)
        return [
            part("embed", embed, embedded + self._positions() * vit.embed_dim),
            part("blocks", sum(blocks[self.idle_blocks :]), count_params(vit.blocks)),
            part("attn", attention),
        ]

    def head(self, alone: bool) -> PartCost:
        """Return the final norm and the classifier on one token; LLaVA's CLIP has the norm only."""
        dim = self.vit.embed_dim
        norm_params = 2 * dim if self.layernorm else dim
        if self.script == "llava":
            return part("head", 2 * dim, norm_params)
        tokens = self._tokens() if alone else self.cells(0)
        norm = 2 * dim * tokens if self.layernorm else 0
        return part("head", norm + dim * NUM_CLASSES, norm_params + (dim + 1) * NUM_CLASSES)

    def _tokens(self) -> int:
        return self.cells(0) + (self.vit.num_prefix_tokens if self.config.prefix_tokens else 0)

    def _block(self, index: int, window: int | None) -> int:
        tokens, padded = self._tokens(), self._tokens()
        if window and self._pads_first():
            padded = (-(-self._side(index) // window) * window) ** 2
        block = self.vit.blocks[index]
        macs = hooked_macs(block, lambda name: padded if name == "attn.qkv" else tokens)
        if self.convention.layernorm and not isinstance(block.norm1, nn.LayerNorm):
            macs += 2 * tokens * 2 * self.vit.embed_dim
        return macs

    def _pads_first(self) -> bool:
        if self.convention.padded_qkv is not None:
            return self.convention.padded_qkv
        return self.script == "mmdetection" or not self.deit_class

    def _positions(self) -> int:
        """Return the rows of the position table: at the real size, in mmdetection at the pretraining size."""
        if self.vit.pos_embed is None:
            return 0
        if self.script == "mmdetection":
            return self.vit.pos_embed.shape[1]
        return self.cells(0) + (0 if self.deit_class and self.script == "classification" else 1)


def count_branch(
    config: BranchConfig, script: Script, convention: Convention, idle_blocks: int
) -> CountedBranch:
    """Return a branch ready to be counted.

    Raises:
        ConfigError: The branch cannot be built.
    """
    # One network serves all sizes and windows: they change no parameter that is counted.
    plain = replace(config, image_size=1, window_size=None, drop_path_rate=0.0, pretrained=None)
    network = _on_meta(json.dumps(plain.to_dict(), sort_keys=True))
    kind = CountedConvNeXt if isinstance(network, ConvNeXtBranch) else CountedViT
    return kind(config, network, script, convention, idle_blocks)


@lru_cache(maxsize=64)
def _on_meta(description: str) -> Branch:
    with on_meta():
        return build_branch(BranchConfig.from_dict(json.loads(description)))
