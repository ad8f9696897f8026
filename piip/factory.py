"""Models by name, and models from a list of timm names."""

from collections.abc import Sequence
from typing import Any

import torch

from piip.branches import build_branch, family_of
from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig, even_ranges
from piip.errors import ConfigError
from piip.network import PIIP
from piip.presets import get_config
from piip.weights import load_pretrained


def create_model(name: str, pretrained: bool = False, **changes: Any) -> PIIP:
    """Build a published network.

    Args:
        name: One of `list_models`.
        pretrained: Load the pretrained weights of its branches. Interactions and merging start anew, as no
            weights of whole networks are published in an open format; `piip convert` reads the released files.
        **changes: Fields of `PIIPConfig` to replace.

    Raises:
        ConfigError: The name or a field is unknown, or the result is impossible.
        CheckpointError: Weights cannot be loaded.
    """
    config = get_config(name)
    model = PIIP(config.replace(**changes) if changes else config)
    return load_branches(model) if pretrained else model


def build(
    archs: Sequence[str],
    sizes: Sequence[int],
    *,
    pretrained: bool = False,
    num_interactions: int | None = None,
    window_size: int | None = None,
    patch_size: int | None = 16,
    prefix_tokens: bool = False,
    drop_path_rate: float = 0.0,
    interaction: InteractionConfig | None = None,
    merging: MergingConfig | None = None,
    shared_weights: bool = False,
) -> PIIP:
    """Build a network from any timm networks.

    Args:
        archs: timm names, smallest network first; a tag (``deit3_small_patch16_224.fb_in22k_ft_in1k``) names the
            weights that ``pretrained`` loads.
        sizes: Image sides in pixels, in the order of ``archs``: the smallest network reads the largest image.
        pretrained: Load the branches' pretrained weights.
        num_interactions: Number of interactions; default: the number of blocks of the shallowest network.
        window_size: Side in tokens of the attention windows of transformers; None = global attention.
        patch_size: Patch side that all transformers are brought to; None keeps their own.
        prefix_tokens: Carry class and register tokens through the blocks.
        drop_path_rate: Stochastic depth rate of every branch.
        interaction: How branches interact; the paper's by default.
        merging: How they merge; by default the detection pyramid, hierarchical if a ConvNeXt reads the largest
            image.
        shared_weights: One network reads all sizes (all ``archs`` must be the same).

    Raises:
        ConfigError: A name is unknown or the parts do not fit together.
        CheckpointError: Weights cannot be loaded.
    """
    if not archs or len(archs) != len(sizes):
        raise ConfigError(
            f"build takes one size per network, got {len(archs)} networks and {len(sizes)} sizes; give lists of "
            "the same length."
        )
    names = [name.split(".")[0] for name in archs]
    families = [family_of(name) for name in names]
    depths = [family.count_blocks(name, {}) for family, name in zip(families, names, strict=True)]
    count = num_interactions or min(depths)
    branches = []
    for arch, name, family, depth, size in zip(archs, names, families, depths, sizes, strict=True):
        convolutional = family.family == "convnext"
        branches.append(
            BranchConfig(
                arch=name,
                image_size=size,
                interaction_indexes=even_ranges(depth, count),
                patch_size=None if convolutional else patch_size,
                window_size=None if convolutional else window_size,
                prefix_tokens=prefix_tokens and not convolutional,
                drop_path_rate=drop_path_rate,
                pretrained=arch if "." in arch else None,
            )
        )
    config = PIIPConfig(
        branches=tuple(reversed(branches)),
        interaction=interaction or InteractionConfig(),
        merging=merging or _suitable_merging(branches),
        shared_weights=shared_weights,
    )
    model = PIIP(config)
    return load_branches(model) if pretrained else model


def load_branches(model: PIIP) -> PIIP:
    """Load the pretrained weights that a network's description names.

    Raises:
        ConfigError: A branch names none.
        CheckpointError: Weights cannot be loaded.
    """
    for number, (branch, config) in enumerate(
        zip(model.branches, model.config.branches, strict=False), start=1
    ):
        if config.pretrained is None:
            raise ConfigError(
                f"Branch {number} ({config.arch}) names no pretrained weights; add a tag to the timm name or set "
                "`pretrained` to a file."
            )
        load_pretrained(branch, config.pretrained)  # type: ignore[arg-type]
    return model


def _suitable_merging(branches: Sequence[BranchConfig]) -> MergingConfig:
    """Return the hierarchical merging for a ConvNeXt on the largest image, else the simple pyramid."""
    output = max(reversed(branches), key=lambda branch: branch.image_size)
    if family_of(output.arch).family != "convnext":
        return MergingConfig() if len(branches) > 1 else MergingConfig(kind="none")
    with torch.device("meta"):
        strides = build_branch(output).strides
    after = [strides[last] for _, last in output.interaction_indexes]
    level_ends = [k for k in range(len(after) - 1) if after[k] != after[k + 1]]
    if len(level_ends) != 3:
        return MergingConfig() if len(branches) > 1 else MergingConfig(kind="none")
    return MergingConfig(kind="hierarchical", out_interactions=tuple(level_ends))
