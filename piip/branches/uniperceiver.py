"""Uni-Perceiver: a ViT whose embeddings are normalised before the first block (SPEC 3.2, 4.4)."""

from functools import partial
from typing import Any, ClassVar

from timm.layers import LayerNorm
from torch import nn

from piip.branches.own import OwnViTBranch

NORM_EPS = 1e-5


class UniPerceiverBranch(OwnViTBranch):
    """The image encoder of Uni-Perceiver.

    Its temporal position embedding of the first (only) frame is a constant, so it is part of ``pos_embed``.
    """

    family = "uniperceiver"
    architectures: ClassVar = {
        "uniperceiver_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
        "uniperceiver_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    }

    def build_trunk(self, options: dict[str, Any]) -> Any:
        """Return a VisionTransformer with a norm after the embedding and gates that start at zero."""
        norm_layer = partial(LayerNorm, eps=NORM_EPS)
        common = {"class_token": False, "init_values": 1.0, "norm_layer": norm_layer}
        trunk = super().build_trunk(common | options)
        trunk.norm_pre = norm_layer(trunk.embed_dim)
        for block in trunk.blocks:
            nn.init.zeros_(block.ls1.gamma)
            nn.init.zeros_(block.ls2.gamma)
        return trunk
