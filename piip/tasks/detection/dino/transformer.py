"""Encoder and decoder layers on our multi-level deformable attention (HEADS.md 4.3, 4.5)."""

from collections.abc import Sequence

from torch import Tensor, nn

from piip.interaction import DeformableAttention
from piip.ops import deformable_attention
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.dino.config import DINOConfig
from piip.tasks.detection.dino.positions import Places


class MultiLevelAttention(DeformableAttention):
    """Deformable attention to several levels, of queries that are points or boxes.

    Args:
        config: The detector.
    """

    def __init__(self, config: DINOConfig) -> None:
        dim = config.embed_dim
        super().__init__(dim, dim, config.num_heads, config.num_points, 1.0, config.num_levels)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, places: Places) -> Tensor:  # type: ignore[override]
        """Attend from queries to the tokens of all levels.

        Args:
            query: (B, Q, D).
            reference: (x, y) or (x, y, w, h) of every query from 0 to 1 over the image, (B, Q, 2) or (B, Q, 4).
            memory: Tokens of all levels, (B, S, D).
            places: Where they are.

        Returns:
            (B, Q, D).
        """
        value = self.value_proj(memory).masked_fill(places.padded[..., None], 0.0)
        offsets, logits = self.points(query)
        pixels = _pixels(places.grids, query)
        if reference.shape[-1] == 4:
            # A whole box has a side of 2 * num_points offsets.
            extent = reference[:, :, None, 2:] * places.valid[:, None] * pixels
            offsets = offsets * (extent * (0.5 / self.num_points))[:, :, None, :, None]
        centre = reference[..., :2]
        # The operator has one reference for all levels, relative to the whole level: the image's part of it is
        # smaller by as much as there is padding.
        shift = centre[:, :, None] * (places.valid[:, None] - 1) * pixels
        offsets = offsets + shift[:, :, None, :, None]
        sampled = deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)), places.grids, centre, offsets, logits
        )
        return self.output_proj(sampled)


def _pixels(grids: Sequence[Size], like: Tensor) -> Tensor:
    """Return width and height (L, 2) of every level."""
    return like.new_tensor([[width, height] for height, width in grids])


def feed_forward(config: DINOConfig) -> nn.Sequential:
    """Return the network of two linear layers that follows every attention."""
    return nn.Sequential(
        nn.Linear(config.embed_dim, config.ffn_dim), nn.ReLU(), nn.Linear(config.ffn_dim, config.embed_dim)
    )


class EncoderLayer(nn.Module):
    """Every token looks at a few others of all levels.

    Args:
        config: The detector.
    """

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.attn = MultiLevelAttention(config)
        self.ffn = feed_forward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.embed_dim) for _ in range(2))

    def forward(self, x: Tensor, positions: Tensor, places: Places) -> Tensor:
        """Map tokens (B, S, D) with position embeddings (B, S, D) to tokens."""
        x = self.norms[0](x + self.attn(x + positions, places.centres, x, places))
        return self.norms[1](x + self.ffn(x))


class DecoderLayer(nn.Module):
    """Queries look at each other, then around their boxes.

    Args:
        config: The detector.
    """

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(config.embed_dim, config.num_heads, batch_first=True)
        self.cross_attn = MultiLevelAttention(config)
        self.ffn = feed_forward(config)
        self.norms = nn.ModuleList(nn.LayerNorm(config.embed_dim) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        boxes: Tensor,
        memory: Tensor,
        places: Places,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Update queries.

        Args:
            x: (B, Q, D).
            positions: Embeddings of their boxes, (B, Q, D).
            boxes: Centre and size from 0 to 1 over the image, (B, Q, 4).
            memory: Tokens of the encoder, (B, S, D).
            places: Where they are.
            blocked: Which queries (rows) may not look at which (columns), (Q, Q).
        """
        query = x + positions
        looked, _ = self.self_attn(query, query, x, attn_mask=blocked, need_weights=False)
        x = self.norms[0](x + looked)
        x = self.norms[1](x + self.cross_attn(x + positions, boxes, memory, places))
        return self.norms[2](x + self.ffn(x))
