"""The backbone's maps in the width of the transformer, and coarser ones (HEADS.md 4.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

from piip.tasks.detection.dino.config import DINOConfig


class Neck(nn.Module):
    """Projects every map, and makes further levels by strided convolutions, the first from the last map.

    Args:
        config: The detector.
    """

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        dim, groups = config.embed_dim, config.num_groups
        self.projections = nn.ModuleList(_normed(channels, dim, groups, 1) for channels in config.in_channels)
        sources = [config.in_channels[-1], *[dim] * config.num_levels]
        extra = config.num_levels - len(config.in_channels)
        self.coarser = nn.ModuleList(_normed(channels, dim, groups, 3) for channels in sources[:extra])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, C_i, H_i, W_i), fine to coarse, to (B, D, H_l, W_l) for every level."""
        levels = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        last = maps[-1]
        for halve in self.coarser:
            last = halve(last)
            levels.append(last)
        return levels


def _normed(channels: int, dim: int, groups: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, dim, kernel, stride=2 if kernel > 1 else 1, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return nn.Sequential(conv, nn.GroupNorm(groups, dim))
