"""Cross-branch feature interaction (paper section 3.2; SPEC 6).

An interaction block holds one unit per pair of linked branches; a unit updates either branch, or both, with
features of the other.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from piip.config import InteractionConfig
from piip.errors import ConfigError
from piip.ops import as_autocast, deformable_attention, gated_linear, scale_outputs
from piip.recomputing import announce_kept
from piip.tokens import Grid, Tokens, to_map

NORM_EPS = 1e-6


class DeformableAttention(nn.Module):
    """Deformable cross-attention from the tokens of one grid to those of another.

    Args:
        query_dim: Width D of the queries and of the output.
        feature_dim: Width of the features that are attended to.
        num_heads: Heads M.
        num_points: Sampling points P per head.
        value_ratio: Width of the values relative to D.
        num_levels: Maps L that are attended to.
    """

    def __init__(
        self,
        query_dim: int,
        feature_dim: int,
        num_heads: int,
        num_points: int,
        value_ratio: float,
        num_levels: int = 1,
    ) -> None:
        super().__init__()
        value_dim = _share(query_dim, value_ratio, "value_ratio")
        if query_dim % num_heads or value_dim % num_heads:
            raise ConfigError(
                f"num_heads is {num_heads}, which does not divide the width {query_dim} and its values' width "
                f"{value_dim}; the nearest that does is {_nearest_divisor(num_heads, query_dim, value_dim)}."
            )
        self.num_heads = num_heads
        self.num_points = num_points
        self.num_levels = num_levels
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(query_dim, points * 2)
        self.attention_weights = nn.Linear(query_dim, points)
        self.value_proj = nn.Linear(feature_dim, value_dim)
        self.output_proj = nn.Linear(value_dim, query_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start with points on a star around the reference and equal weights (SPEC 10)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        star = direction[:, None, None] * steps[:, None]
        self.sampling_offsets.bias.copy_(star.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that makes the output."""
        return self.output_proj

    def forward(
        self, query: Tensor, query_grid: Grid, feature: Tensor, feature_grid: Grid, gate: Tensor | None = None
    ) -> Tensor:
        """Attend from ``query`` (B, Hq * Wq, D) to ``feature`` (B, Hv * Wv, F).

        Returns (B, Hq * Wq, D), times a gate (D).
        """
        value = self.value_proj(feature).unflatten(-1, (self.num_heads, -1))
        offsets, logits = self.points(query)
        sampled = deformable_attention(value, [feature_grid], query_grid, offsets, logits)
        return gated_linear(self.output_proj, sampled, gate)

    def points(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets of the points of queries (B, Q, D), (B, Q, M, L, P, 2) in pixels, and their logits."""
        query = as_autocast(query)  # once for two layers
        per_head = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        return self.sampling_offsets(query).view(*per_head, 2), self.attention_weights(query).view(per_head)


class RegularAttention(nn.Module):
    """Multi-head cross-attention to all tokens (the paper's ablation; quadratic cost).

    Args:
        query_dim: Width D of the queries and of the output.
        feature_dim: Width of the features that are attended to.
        num_heads: Number of heads.
    """

    def __init__(self, query_dim: int, feature_dim: int, num_heads: int) -> None:
        super().__init__()
        if query_dim % num_heads:
            raise ConfigError(
                f"num_heads is {num_heads}, which does not divide the width {query_dim}; the nearest that does "
                f"is {_nearest_divisor(num_heads, query_dim)}."
            )
        self.num_heads = num_heads
        self.wq = nn.Linear(query_dim, query_dim, bias=False)
        self.wk = nn.Linear(feature_dim, query_dim, bias=False)
        self.wv = nn.Linear(feature_dim, query_dim, bias=False)
        self.proj = nn.Linear(query_dim, query_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as transformers are (SPEC 10)."""
        for linear in (self.wq, self.wk, self.wv, self.proj):
            _init_linear(linear)

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that makes the output."""
        return self.proj

    def forward(
        self, query: Tensor, query_grid: Grid, feature: Tensor, feature_grid: Grid, gate: Tensor | None = None
    ) -> Tensor:
        """Attend from ``query`` (B, Nq, D) to ``feature`` (B, Nf, F); returns (B, Nq, D) times a gate; no grids."""
        q, k, v = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.wq(query), self.wk(feature), self.wv(feature))
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return gated_linear(self.proj, attended, gate)


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution over the token grid.

    Args:
        dim: Width of the tokens.
        hidden_dim: Width in between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the original does (SPEC 10)."""
        _init_linear(self.fc1)
        _init_linear(self.fc2)
        nn.init.normal_(self.dwconv.weight, std=math.sqrt(2 / 9))
        nn.init.zeros_(self.dwconv.bias)  # type: ignore[arg-type]

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that makes the output."""
        return self.fc2

    def forward(self, x: Tensor, grid: Grid, gate: Tensor | None = None) -> Tensor:
        """Transform tokens (B, H * W, D), times a gate (D)."""
        hidden = self.dwconv(to_map(self.fc1(x), grid))
        return gated_linear(self.fc2, self.act(hidden.permute(0, 2, 3, 1).flatten(1, 2)), gate)


class Injector(nn.Module):
    """Brings the features of one branch into another: cross-attention, then a ConvFFN, both behind gates.

    The gates start at zero, so a new injector changes nothing and pretrained branches start as they were.

    Args:
        query_dim: Width D of the branch that is updated.
        source_dim: Width of the branch that features come from.
        config: Kind and sizes of the interaction.
    """

    def __init__(self, query_dim: int, source_dim: int, config: InteractionConfig) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Identity()
        feature_dim = source_dim
        if config.projection:
            self.proj = _init_linear(nn.Linear(source_dim, query_dim))
            feature_dim = query_dim
        self.query_norm = _norm(query_dim, config)
        self.feat_norm = _norm(feature_dim, config)
        self.attn: DeformableAttention | RegularAttention
        if config.attention == "deformable":
            self.attn = DeformableAttention(
                query_dim, feature_dim, config.num_heads, config.num_points, config.value_ratio
            )
        else:
            self.attn = RegularAttention(query_dim, feature_dim, config.num_heads)
        self.attn_gate: nn.Parameter | None = nn.Parameter(torch.zeros(query_dim))
        self.ffn: ConvFFN | None = None
        if config.ffn_ratio is not None:
            self.ffn = ConvFFN(query_dim, _share(query_dim, config.ffn_ratio, "ffn_ratio"))
            self.ffn_norm = _norm(query_dim, config)
            self.ffn_gate: nn.Parameter | None = nn.Parameter(torch.zeros(query_dim))
            self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, query: Tokens, source: Tokens) -> Tokens:
        """Return the ``query`` branch's tokens with features of ``source`` added."""
        x, grid = query.x, query.grid
        # Every branch's tokens are kept for the norm that they meet next.
        feature = self.feat_norm(self.proj(announce_kept(source.x)))
        x = x + self.attn(self.query_norm(x), grid, feature, source.grid, self.attn_gate)
        if self.ffn is not None:
            x = x + self.drop_path(self.ffn(self.ffn_norm(x), grid, self.ffn_gate))
        return query._replace(x=x)

    def fold(self) -> None:
        """Let the output projections take over the gates, for inference."""
        if self.attn_gate is not None:
            scale_outputs(self.attn.last_layer, self.attn_gate)
            self.attn_gate = None
        if self.ffn is not None and self.ffn_gate is not None:
            scale_outputs(self.ffn.last_layer, self.ffn_gate)
            self.ffn_gate = None


class InteractionUnit(nn.Module):
    """Exchange between two branches; both directions read the tokens from before the unit.

    Args:
        lower_dim: Width of the branch with the lower number (the larger network).
        higher_dim: Width of the branch with the higher number.
        config: Kind and sizes of the interaction.
        to_lower: Whether features flow to the branch with the lower number.
        to_higher: Whether features flow to the branch with the higher number.
    """

    def __init__(
        self, lower_dim: int, higher_dim: int, config: InteractionConfig, to_lower: bool, to_higher: bool
    ) -> None:
        super().__init__()
        self.to_lower = Injector(lower_dim, higher_dim, config) if to_lower else None
        self.to_higher = Injector(higher_dim, lower_dim, config) if to_higher else None

    def forward(self, lower: Tokens, higher: Tokens) -> tuple[Tokens, Tokens]:
        """Return the updated tokens of both branches."""
        new_lower = self.to_lower(lower, higher) if self.to_lower is not None else lower
        new_higher = self.to_higher(higher, lower) if self.to_higher is not None else higher
        return new_lower, new_higher


class InteractionBlock(nn.Module):
    """All units after one range of blocks, visited from the pair of highest resolution down.

    Args:
        dims: Width of every branch at this place.
        links: ``(source, target)`` branch numbers from 1.
        config: Kind and sizes of the interaction.
    """

    def __init__(
        self, dims: Sequence[int], links: Sequence[tuple[int, int]], config: InteractionConfig
    ) -> None:
        super().__init__()
        pairs = sorted({(min(link), max(link)) for link in links}, key=lambda p: (p[1], p[0]), reverse=True)
        self.pairs = [(lower - 1, higher - 1) for lower, higher in pairs]
        self.units = nn.ModuleDict(
            {
                f"{lower}_{higher}": InteractionUnit(
                    dims[lower - 1],
                    dims[higher - 1],
                    config,
                    to_lower=(higher, lower) in links,
                    to_higher=(lower, higher) in links,
                )
                for lower, higher in pairs
            }
        )

    def forward(self, tokens: Sequence[Tokens]) -> list[Tokens]:
        """Return the tokens of all branches after the exchange."""
        updated = list(tokens)
        for (lower, higher), unit in zip(self.pairs, self.units.values(), strict=True):
            updated[lower], updated[higher] = unit(updated[lower], updated[higher])
        return updated


def _share(dim: int, ratio: float, name: str) -> int:
    """Return a share of a width, rounded down."""
    share = int(dim * ratio)
    if share < 1:
        raise ConfigError(
            f"{name} is {ratio}, which leaves nothing of the width {dim}; give at least {1 / dim:.4f}."
        )
    return share


def _norm(dim: int, config: InteractionConfig) -> nn.Module:
    return nn.LayerNorm(dim, eps=NORM_EPS) if config.norm == "layernorm" else nn.Identity()


def _init_linear(linear: nn.Linear) -> nn.Linear:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def _nearest_divisor(wanted: int, *dims: int) -> int:
    divisors = [n for n in range(1, min(dims) + 1) if all(dim % n == 0 for dim in dims)]
    return min(divisors, key=lambda n: abs(n - wanted))
