"""Models by name, and models from a list of timm names."""

import warnings
from collections.abc import Sequence
from typing import Any

import timm

from piip.branches import build_branch, family_of
from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig, even_ranges
from piip.errors import ConfigError
from piip.meta import on_meta
from piip.network import PIIP
from piip.presets import get_config
from piip.weights import load_pretrained

DEFORMABLE = InteractionConfig()
"""The interactions of the paper."""


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
    interaction: InteractionConfig | None = DEFORMABLE,
    merging: MergingConfig | None = None,
    shared_weights: bool = False,
) -> PIIP:
    """Build a network from any timm networks.

    Args:
        archs: timm names, smallest network first; a tag (``deit3_small_patch16_224.fb_in22k_ft_in1k``) names the
            weights that ``pretrained`` loads, timm's default ones if there is none.
        sizes: Image sides in pixels, in the order of ``archs``: the smallest network reads the largest image.
        pretrained: Load the branches' pretrained weights.
        num_interactions: Number of interactions; default: the number of blocks of the shallowest network.
        window_size: Side in tokens of the attention windows of transformers; None = global attention.
        patch_size: Patch side that all transformers are brought to; None keeps their own.
        prefix_tokens: Carry class and register tokens through the blocks.
        drop_path_rate: Stochastic depth rate of every branch.
        interaction: How branches interact; the paper's way by default, None = not at all.
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
    count = min(depths) if num_interactions is None else num_interactions
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
                pretrained=_weights_of(arch),
            )
        )
    config = PIIPConfig(
        branches=tuple(reversed(branches)),
        interaction=interaction,
        merging=merging or _suitable_merging(branches),
        shared_weights=shared_weights,
    )
    model = PIIP(config)
    return load_branches(model) if pretrained else model


def load_branches(model: PIIP) -> PIIP:
    """Load the pretrained weights that a network's description names, warning of branches that name none.

    Raises:
        ConfigError: No branch names any.
        CheckpointError: Weights cannot be loaded.
    """
    configs = model.config.branches[: len(model.branches)]  # shared weights are loaded once
    without = [f"branch {n} ({c.arch})" for n, c in enumerate(configs, start=1) if c.pretrained is None]
    if len(without) == len(configs):
        raise ConfigError(
            f"There are no pretrained weights by name for {', '.join(without)}; set `pretrained` of a branch to a "
            "file, or leave pretrained off."
        )
    if without:
        warnings.warn(
            f"No pretrained weights are named for {', '.join(without)}: random start.", stacklevel=3
        )
    for branch, config in zip(model.branches, configs, strict=True):
        if config.pretrained is not None:
            load_pretrained(branch, config.pretrained)  # type: ignore[arg-type]
    return model


def _weights_of(arch: str) -> str | None:
    """Return the weights that a timm name means, with timm's default tag where it has none."""
    if "." in arch:
        return arch
    known = timm.models.get_pretrained_cfg(arch)
    return f"{arch}.{known.tag}" if known is not None and known.has_weights else None


def _suitable_merging(branches: Sequence[BranchConfig]) -> MergingConfig:
    """Return the hierarchical merging for a ConvNeXt on the largest image, else the simple pyramid."""
    output = max(reversed(branches), key=lambda branch: branch.image_size)
    if family_of(output.arch).family != "convnext":
        return MergingConfig() if len(branches) > 1 else MergingConfig(kind="none")
    with on_meta():
        strides = build_branch(output).strides
    after = [strides[last] for _, last in output.interaction_indexes]
    level_ends = [k for k in range(len(after) - 1) if after[k] != after[k + 1]]
    if len(level_ends) != 3:
        return MergingConfig() if len(branches) > 1 else MergingConfig(kind="none")
    return MergingConfig(kind="hierarchical", out_interactions=tuple(level_ends))
