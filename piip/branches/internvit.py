"""InternViT: RMSNorm, and queries and keys normalised over their full width (SPEC 4.2)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from piip.branches.own import OwnViTBranch


class FullWidthNormAttention(Attention):
    """timm's attention with q and k normalised over all heads together instead of per head."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qk_norm: bool = False,
        norm_layer: type[nn.Module] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, qk_norm=False, norm_layer=norm_layer, **options)
        if qk_norm and norm_layer is not None:
            self.q_norm = norm_layer(dim)
            self.k_norm = norm_layer(dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend among tokens (B, N, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.q_norm(q), self.k_norm(k), v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(attended.transpose(1, 2).flatten(2))


class InternViTBranch(OwnViTBranch):
    """InternViT of any size; the 6B shape is ``internvit_6b``."""

    family = "internvit"
    architectures: ClassVar = {
        "internvit_6b": {
            "img_size": 224,
            "patch_size": 14,
            "embed_dim": 3200,
            "depth": 48,
            "num_heads": 25,
            "qkv_bias": False,
            "qk_norm": True,
            "norm_layer": "rmsnorm",
            "init_values": 0.1,
            "attn_layer": FullWidthNormAttention,
        },
    }
