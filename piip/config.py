"""The one description of a model: what its branches are, how they interact and how they merge.

Branches are numbered as in the paper: branch 1 is the largest network and (in a parameter-inverted pyramid)
reads the smallest image; the last branch is the smallest network on the largest image.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from piip.described import Described, FrozenDict
from piip.errors import ConfigError

WindowPadding = Literal["before_qkv", "after_qkv"]
DropPathDecay = Literal["linear", "constant"]
InteractionAttention = Literal["deformable", "regular"]
InteractionNorm = Literal["layernorm", "none"]
MergingKind = Literal["none", "linear", "conv", "hierarchical"]

MAX_SIZE_DIVISOR = 256
"""Largest multiple of pixels that images are padded to by default (see `PIIPConfig.size_divisor`)."""


@dataclass(frozen=True)
class BranchConfig(Described):
    """One branch of the pyramid: a network and the size of the image it reads.

    Attributes:
        arch: A timm architecture (``deit3_small_patch16_224``, ``convnext_tiny``, ...) or one of piip's own
            (``internvit_6b``, ``uniperceiver_base``, ...). Names the shape only, never the weights.
        image_size: Side in pixels of this branch's image when the model sees a square image of its nominal
            size. Only the ratios between branches matter at run time.
        interaction_indexes: Inclusive ``(first, last)`` block ranges; interaction k follows range k.
        patch_size: Patch side of a transformer in pixels; None keeps the architecture's own.
        window_size: Side in tokens of the attention windows, one number for every block or one entry per block
            (None = global attention).
        window_padding: Where incomplete windows are filled up with zeros: before the qkv projection (all
            released models) or after it (SPEC 4.5, variants B and A).
        prefix_tokens: Carry the class and register tokens through the blocks. They take no part in
            interactions and merging.
        drop_path_rate: Stochastic depth rate of the branch.
        drop_path_decay: Rate rises linearly from the first block to the last, or is the same everywhere.
        pretrained: Where pretrained weights come from when asked for: a timm name with its tag, ``hf-hub:owner/
            repo`` or a local file.
        options: Further arguments of the architecture's constructor (``embed_dim``, ``depth``, ...).
    """

    arch: str
    image_size: int
    interaction_indexes: tuple[tuple[int, int], ...]
    patch_size: int | None = None
    window_size: int | tuple[int | None, ...] | None = None
    window_padding: WindowPadding = "before_qkv"
    prefix_tokens: bool = False
    drop_path_rate: float = 0.0
    drop_path_decay: DropPathDecay = "linear"
    pretrained: str | None = None
    options: Mapping[str, Any] = FrozenDict({})

    def check(self) -> None:
        """Refuse values that no network can have."""
        for name in ("image_size", "patch_size", "window_size"):
            self.check_range(name, 1)
        self.check_range("drop_path_rate", 0, 1)
        if not self.interaction_indexes:
            raise ConfigError(f"interaction_indexes of {self.arch} is empty; give at least one block range.")
        expected = 0
        for first, last in self.interaction_indexes:
            if first != expected or last < first:
                raise ConfigError(
                    f"interaction_indexes of {self.arch}: the range ({first}, {last}) must start at block "
                    f"{expected} and not end before it; the nearest valid one is "
                    f"({expected}, {max(expected, last)})."
                )
            expected = last + 1
        if self.prefix_tokens and self.window_size is not None:
            raise ConfigError(
                f"{self.arch}: prefix_tokens and window_size exclude each other; drop one of them."
            )

    @property
    def depth(self) -> int:
        """Number of blocks that the ranges cover."""
        return self.interaction_indexes[-1][1] + 1

    def window_sizes(self) -> tuple[int | None, ...]:
        """Return the window side of every block, None where attention is global."""
        if not isinstance(self.window_size, tuple):
            return (self.window_size,) * self.depth
        if len(self.window_size) != self.depth:
            raise ConfigError(
                f"window_size of {self.arch} has {len(self.window_size)} entries for {self.depth} blocks; "
                "give one number or one entry per block."
            )
        return self.window_size

    def drop_path_rates(self) -> tuple[float, ...]:
        """Return the stochastic depth rate of every block."""
        if self.drop_path_decay == "constant":
            return (self.drop_path_rate,) * self.depth
        steps = max(self.depth - 1, 1)
        return tuple(self.drop_path_rate * block / steps for block in range(self.depth))


@dataclass(frozen=True)
class InteractionConfig(Described):
    """How adjacent branches exchange features (paper section 3.2; SPEC 6).

    Attributes:
        attention: ``deformable`` (linear cost) or ``regular`` cross-attention.
        num_heads: Heads of the cross-attention.
        num_points: Sampling points per head and query of deformable attention.
        value_ratio: Width of the values of deformable attention relative to the query's.
        ffn_ratio: Hidden width of the convolutional feed-forward network relative to the query's; None = none.
        projection: Project the other branch's features to the query's width first.
        norm: Normalise queries, features and the feed-forward input, or nothing.
        drop_path_rate: Stochastic depth of the feed-forward network.
        links: ``(source, target)`` branch numbers from 1, one per direction; None = both ways between
            neighbours.
    """

    attention: InteractionAttention = "deformable"
    num_heads: int = 16
    num_points: int = 4
    value_ratio: float = 0.5
    ffn_ratio: float | None = 0.25
    projection: bool = True
    norm: InteractionNorm = "layernorm"
    drop_path_rate: float = 0.4
    links: tuple[tuple[int, int], ...] | None = None

    def check(self) -> None:
        """Refuse values that no network can have."""
        for name in ("num_heads", "num_points"):
            self.check_range(name, 1)
        for name in ("value_ratio", "ffn_ratio"):
            self.check_range(name, 0, above=True)
        self.check_range("drop_path_rate", 0, 1)


@dataclass(frozen=True)
class MergingConfig(Described):
    """How the branches become one feature map or pyramid (paper section 3.3; SPEC 7 and 8).

    Attributes:
        kind: ``none`` (one map per branch), ``linear`` (classification: norm, linear, norm), ``conv``
            (detection: two 3x3 convolutions per branch) or ``hierarchical`` (one merge per level, for
            ConvNeXt pyramids).
        pyramid_levels: Levels built from the merged map: 1 = four times its resolution, 2 = twice, 3 = itself,
            4 = half. Empty: the merged map alone.
        out_interactions: Indexes (from 0) of the block ranges after which a level is taken; the last level
            follows the last range. ``hierarchical`` needs them; with ``none`` they give the stages of a single
            branch.
    """

    kind: MergingKind = "conv"
    pyramid_levels: tuple[int, ...] = (1, 2, 3, 4)
    out_interactions: tuple[int, ...] = ()

    def check(self) -> None:
        """Refuse levels that do not exist."""
        levels = self.pyramid_levels
        if list(levels) != sorted(set(levels)) or not set(levels) <= {1, 2, 3, 4}:
            raise ConfigError(f"pyramid_levels is {levels}; give a rising selection of 1, 2, 3, 4.")
        outs = self.out_interactions
        if (self.kind in ("linear", "conv") and outs) or (self.kind == "hierarchical" and not outs):
            raise ConfigError(
                f"out_interactions is {outs} with kind {self.kind!r}; 'hierarchical' needs them, 'none' may have "
                "them, and the other kinds make a single map."
            )
        if outs and len(levels) != len(outs) + 1:
            raise ConfigError(
                f"out_interactions {outs} give {len(outs) + 1} maps (one after each and one at the end) but "
                f"pyramid_levels names {len(levels)}."
            )


@dataclass(frozen=True)
class PIIPConfig(Described):
    """A whole network.

    Attributes:
        branches: Branch 1 (largest network) first.
        interaction: How branches exchange features; None = not at all.
        merging: How they become the output.
        shared_weights: All branches are one network that reads the image at several sizes.
        size_divisor: The image is padded at the bottom and right with zeros to a multiple of this many pixels,
            and the maps are cropped back. None chooses the smallest multiple at which every branch has whole
            tokens or, where that is above `MAX_SIZE_DIVISOR`, at which the output branch has (the others drop
            incomplete ones at the far edges). 1 pads nothing and drops incomplete tokens everywhere, as the
            original does.
    """

    branches: tuple[BranchConfig, ...]
    interaction: InteractionConfig | None = field(default_factory=InteractionConfig)
    merging: MergingConfig = field(default_factory=MergingConfig)
    shared_weights: bool = False
    size_divisor: int | None = None

    def check(self) -> None:
        """Refuse branches that do not fit together."""
        if not self.branches:
            raise ConfigError("branches is empty; a network needs at least one branch.")
        counts = {len(branch.interaction_indexes) for branch in self.branches}
        if len(counts) > 1:
            listed = ", ".join(f"{b.arch}: {len(b.interaction_indexes)}" for b in self.branches)
            raise ConfigError(
                f"interaction_indexes must have the same number of ranges in every branch, got {listed}; "
                f"the nearest common number is {min(counts)}."
            )
        self.check_range("size_divisor", 1)
        self._check_links()
        self._check_merging()
        first = self.branches[0]
        same = (dataclasses.replace(b, image_size=first.image_size) == first for b in self.branches)
        if self.shared_weights and not all(same):
            raise ConfigError("shared_weights needs branches that differ in image_size alone.")

    @property
    def num_branches(self) -> int:
        """Number of branches."""
        return len(self.branches)

    @property
    def num_interactions(self) -> int:
        """Number of block ranges, each followed by an interaction if there are any."""
        return len(self.branches[0].interaction_indexes)

    @property
    def image_size(self) -> int:
        """Nominal side of the image in pixels: that of the branch with the largest image."""
        return max(branch.image_size for branch in self.branches)

    @property
    def output_branch(self) -> int:
        """Index (from 0) of the branch whose grid the merged map has: the last one with the largest image."""
        return max(range(self.num_branches), key=lambda i: (self.branches[i].image_size, i))

    def scales(self) -> tuple[float, ...]:
        """Return every branch's image side relative to the input's."""
        return tuple(branch.image_size / self.image_size for branch in self.branches)

    def links(self) -> tuple[tuple[int, int], ...]:
        """Return the ``(source, target)`` pairs of branch numbers (from 1) along which features flow."""
        if self.interaction is None:
            return ()
        if self.interaction.links is not None:
            return self.interaction.links
        neighbours = [(a, a + 1) for a in range(1, self.num_branches)]
        return tuple(link for a, b in neighbours for link in ((b, a), (a, b)))

    def _check_links(self) -> None:
        links = self.links()
        for source, target in links:
            if source == target or not {source, target} <= set(range(1, self.num_branches + 1)):
                raise ConfigError(
                    f"links holds ({source}, {target}); give two different branch numbers from 1 to "
                    f"{self.num_branches}."
                )
        if len(set(links)) < len(links):
            raise ConfigError(f"links names a direction twice: {links}.")

    def _check_merging(self) -> None:
        merging = self.merging
        if merging.kind == "none" and self.num_branches > 1 and merging.pyramid_levels:
            raise ConfigError(
                f"merging kind 'none' returns one map per branch, so pyramid_levels must be empty with "
                f"{self.num_branches} branches."
            )
        if merging.kind == "none" and self.num_branches > 1 and merging.out_interactions:
            raise ConfigError("out_interactions with merging kind 'none' needs a single branch.")
        last = self.num_interactions - 1
        outs = merging.out_interactions
        if list(outs) != sorted(set(outs)) or any(not 0 <= k < last for k in outs):
            raise ConfigError(f"out_interactions is {outs}; give rising numbers from 0 to {last - 1}.")


def common_size_divisor(scales: Sequence[float], strides: Sequence[int]) -> int | None:
    """Return the smallest number of pixels whose multiples give every branch whole tokens.

    Args:
        scales: Image side of every branch relative to the input's.
        strides: Coarsest stride of every branch, in pixels of its own image.

    Returns:
        The number, or None if there is none up to `MAX_SIZE_DIVISOR`.
    """
    for divisor in range(min(strides), MAX_SIZE_DIVISOR + 1):
        if all(_is_multiple(divisor * scale, stride) for scale, stride in zip(scales, strides, strict=True)):
            return divisor
    return None


def even_ranges(depth: int, count: int) -> tuple[tuple[int, int], ...]:
    """Split ``depth`` blocks into ``count`` contiguous inclusive ranges whose lengths differ by at most one.

    Raises:
        ConfigError: There are fewer blocks than ranges.
    """
    if not 1 <= count <= depth:
        raise ConfigError(f"{depth} blocks cannot be split into {count} ranges; give 1 to {depth}.")
    ends = [depth * (k + 1) // count for k in range(count)]
    return tuple((start, end - 1) for start, end in zip([0, *ends], ends, strict=False))


def _is_multiple(size: float, stride: int) -> bool:
    tokens = size / stride
    return tokens >= 1 - 1e-9 and math.isclose(tokens, round(tokens), abs_tol=1e-6)
