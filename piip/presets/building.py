"""Builders of published networks and their names."""

from collections.abc import Mapping, Sequence

from piip.config import InteractionConfig, MergingConfig, PIIPConfig
from piip.presets.networks import DEIT, Network, Windows, repeat_windows

DEFORMABLE = InteractionConfig()
LEAN = InteractionConfig(projection=False, norm="none")
"""The interactions of the released "speedup" configurations."""
FUSED_MLP = {"act_layer": "gelu_tanh"}
"""What the released fused MLP computes: the approximate GELU."""
SIMPLE_PYRAMID = MergingConfig()
STAGES = MergingConfig("none", out_interactions=(0, 1, 2))
"""Four stages of a single branch, one for each level."""
MAPS = MergingConfig("none", pyramid_levels=())
"""One map per branch, for a classifier or a projector."""


def pyramid(
    letters: Sequence[str],
    sizes: Sequence[int],
    networks: Mapping[str, Network] = DEIT,
    window_size: Windows | list[Windows] = None,
    num_interactions: int = 12,
    interaction: InteractionConfig | None = DEFORMABLE,
    merging: MergingConfig = SIMPLE_PYRAMID,
    prefix_tokens: bool = False,
    options: Mapping[str, object] | None = None,
) -> PIIPConfig:
    """Return a published network.

    Args:
        letters: Sizes of the branches, smallest network first, as in the papers' names.
        sizes: Image sides in pixels, in the same order.
        networks: What the letters stand for.
        window_size: Windows of every branch, or a list of one entry per branch in the same order.
        num_interactions: Number of interactions.
        interaction: Kind of the interactions; None = no interactions.
        merging: Kind of the output.
        prefix_tokens: Carry class tokens through the blocks.
        options: Further constructor arguments of every branch.
    """
    windows = window_size if isinstance(window_size, list) else [window_size] * len(letters)
    branches = [
        networks[letter].branch(size, num_interactions, window, prefix_tokens, **(options or {}))
        for letter, size, window in zip(letters, sizes, windows, strict=True)
    ]
    return PIIPConfig(tuple(reversed(branches)), interaction, merging)


def single(
    network: Network, size: int, window_size: Windows = None, merging: MergingConfig | None = None
) -> PIIPConfig:
    """Return a single-branch baseline, by default with the simple pyramid."""
    merging = merging or MergingConfig("none")
    stages = len(merging.out_interactions) + 1
    branch = network.branch(size, stages, window_size, prefix_tokens=merging == MAPS)
    return PIIPConfig((branch,), None, merging)


def vitdet_windows(network: Network, size: int) -> Windows:
    """Return windows of ``size`` tokens with every third block global, as in ViTDet's baselines."""
    return repeat_windows(size, size, None, depth=network.depth)


def name_of(letters: Sequence[str], sizes: Sequence[int], *suffixes: str) -> str:
    """Return a model's name: networks from small to large, sizes in the same order, then the variant."""
    return "_".join(["piip", "".join(letters), *map(str, sizes), *suffixes])
