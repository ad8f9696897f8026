"""Uni-Perceiver: a ViT whose embeddings are normalised before the first block (SPEC 3.2, 4.4)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import LayerNorm
from torch import nn

from piip.branches.internvit import build_vision_transformer
from piip.branches.vit import ViTBranch

NORM_EPS = 1e-5
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "uniperceiver_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "uniperceiver_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}


class UniPerceiverBranch(ViTBranch):
    """The image encoder of Uni-Perceiver.

    Its temporal position embedding of the first (only) frame is a constant, so it is part of ``pos_embed``.
    """

    family = "uniperceiver"

    @classmethod
    def accepts(cls, arch: str) -> bool:
        """Return whether ``arch`` is one of `ARCHITECTURES`."""
        return arch in ARCHITECTURES

    @classmethod
    def count_blocks(cls, arch: str, options: Mapping[str, Any]) -> int:
        """Return the number of blocks of an architecture with constructor ``options``."""
        return int((ARCHITECTURES[arch] | dict(options))["depth"])

    def build_trunk(self, options: dict[str, Any]) -> Any:
        """Return a VisionTransformer with a norm after the embedding and gates that start at zero."""
        norm_layer = partial(LayerNorm, eps=NORM_EPS)
        shape = ARCHITECTURES[self.config.arch] | {"class_token": False, "init_values": 1.0}
        trunk = build_vision_transformer(self.config.arch, shape | {"norm_layer": norm_layer} | options)
        trunk.norm_pre = norm_layer(trunk.embed_dim)
        for block in trunk.blocks:
            nn.init.zeros_(block.ls1.gamma)
            nn.init.zeros_(block.ls2.gamma)
        return trunk
