"""The single networks that published branches are, and how their blocks divide between interactions.

Sources: SPEC 16; the weights are those that the released configurations name, where timm or the Hub holds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from piip.config import BranchConfig, DropPathDecay, even_ranges

Ranges = tuple[tuple[int, int], ...]
Windows = int | tuple[int | None, ...] | None


@dataclass(frozen=True)
class Network:
    """A pretrained network, before it is given an image size.

    Attributes:
        arch: timm architecture or one of piip's own.
        depth: Number of blocks (a ConvNeXt's downsamplings included).
        pretrained: Its weights.
        drop_path_rate: Stochastic depth of the released configurations.
        drop_path_decay: ``constant`` in the original's DeiT class, ``linear`` in all others (SPEC 4.1 to 4.4).
        patch_size: Patch side in a pyramid; None keeps the architecture's.
        options: Arguments of the architecture's constructor.
    """

    arch: str
    depth: int
    pretrained: str | None = None
    drop_path_rate: float = 0.0
    drop_path_decay: DropPathDecay = "linear"
    patch_size: int | None = 16
    options: Mapping[str, Any] = field(default_factory=dict)

    def branch(
        self,
        image_size: int,
        num_interactions: int,
        window_size: Windows = None,
        prefix_tokens: bool = False,
        **options: Any,
    ) -> BranchConfig:
        """Return the network as a branch; ``options`` are further arguments of its constructor."""
        return BranchConfig(
            arch=self.arch,
            image_size=image_size,
            interaction_indexes=block_ranges(self, num_interactions),
            patch_size=self.patch_size,
            window_size=None if self.is_convnext else window_size,
            prefix_tokens=prefix_tokens and not self.is_convnext,
            drop_path_rate=self.drop_path_rate,
            drop_path_decay=self.drop_path_decay,
            pretrained=self.pretrained,
            options={**self.options, **options},
        )

    @property
    def is_convnext(self) -> bool:
        """Whether the network is a ConvNeXt, which has neither windows nor prefix tokens."""
        return self.arch.startswith("convnext")


def block_ranges(network: Network, num_interactions: int) -> Ranges:
    """Return the released division of a network's blocks, the even one where none was released."""
    kind = "convnext" if network.is_convnext else "vit"
    lengths = _RELEASED_LENGTHS.get((kind, network.depth, num_interactions))
    return even_ranges(network.depth, num_interactions) if lengths is None else _ranges(lengths)


def repeat_windows(*pattern: int | None, depth: int) -> tuple[int | None, ...]:
    """Return one window side per block from a pattern that repeats."""
    return tuple(pattern[block % len(pattern)] for block in range(depth))


def _ranges(lengths: Sequence[int]) -> Ranges:
    ends = [sum(lengths[: k + 1]) for k in range(len(lengths))]
    return tuple((end - length, end - 1) for end, length in zip(ends, lengths, strict=True))


# Numbers of blocks before each interaction, where they are not as even as can be.
_RELEASED_LENGTHS: dict[tuple[str, int, int], Sequence[int]] = {
    ("vit", 32, 12): (2,) * 4 + (3,) * 8,
    ("convnext", 21, 12): (3, 4, 2, *(1,) * 8, 4),
    ("convnext", 39, 12): (3, 4, 4, *(3,) * 8, 4),
    ("convnext", 39, 24): (2, 1, 2, 2, 3, *(1, 2) * 9, 2),
    ("convnext", 39, 4): (3, 4, 28, 4),
    ("convnext", 39, 2): (20, 19),
}


def _deit(arch: str, tag: str, rate: float, depth: int = 12) -> Network:
    # The released class has layer scales in every network, and DeiT 1 has none to load: they start at 1.
    return Network(arch, depth, f"{arch}.{tag}", rate, "constant", options={"init_values": 1.0})


def _trunk(arch: str, tag: str, rate: float, depth: int, **options: Any) -> Network:
    return Network(arch, depth, f"{arch}.{tag}", rate, options={"init_values": 1.0} | options)


def _convnext(size: str, depth: int, rate: float, tag: str = "fb_in22k") -> Network:
    arch = f"convnext_{size}"
    return Network(arch, depth, f"{arch}.{tag}", rate, patch_size=None)


_DEPTHS = {"s": ("small", 12), "b": ("base", 12), "l": ("large", 24)}
_DEIT_RATES = {"s": 0.05, "b": 0.15, "l": 0.4}
_AUGREG_RATES = {"s": 0.2, "b": 0.3, "l": 0.4}

TINY = _deit("deit_tiny_patch16_224", "fb_in1k", 0.05)
DEIT = {"t": TINY} | {
    letter: _deit(f"deit3_{size}_patch16_224", "fb_in22k_ft_in1k", _DEIT_RATES[letter], depth)
    for letter, (size, depth) in _DEPTHS.items()
}
DEIT_384 = {
    letter: _deit(f"deit3_{size}_patch16_384", "fb_in22k_ft_in1k", _DEIT_RATES[letter], depth)
    for letter, (size, depth) in _DEPTHS.items()
}
AUGREG = {
    letter: _trunk(f"vit_{size}_patch16_384", "augreg_in21k_ft_in1k", _AUGREG_RATES[letter], depth)
    for letter, (size, depth) in _DEPTHS.items()
}
DINOV2 = {
    letter: _trunk(f"vit_{size}_patch14_dinov2", "lvd142m", _AUGREG_RATES[letter], depth)
    for letter, (size, depth) in _DEPTHS.items()
}
MAE = {
    "s": DEIT["s"],
    "b": _trunk("vit_base_patch16_224", "mae", 0.15, 12),
    "l": _trunk("vit_large_patch16_224", "mae", 0.4, 24),
    "h": _trunk("vit_huge_patch14_224", "mae", 0.4, 32),
}
BEIT = {
    "s": DEIT["s"],
    "b": _trunk("beitv2_base_patch16_224", "in1k_ft_in22k", 0.15, 12, init_values=1e-6),
    "l": _trunk("beitv2_large_patch16_224", "in1k_ft_in22k", 0.4, 24, init_values=1e-6),
}
UNIPERCEIVER = {
    "s": DEIT["s"],
    "b": Network("uniperceiver_base", 12, drop_path_rate=0.15),
    "l": Network("uniperceiver_large", 24, drop_path_rate=0.4),
}
INTERNVIT = Network("internvit_6b", 48, "hf-hub:OpenGVLab/InternViT-6B-224px", 0.4)
CONVNEXT = {
    "t": _convnext("tiny", 21, 0.3),
    "s": _convnext("small", 39, 0.3),
    "b": _convnext("base", 39, 0.4),
}
PRETRAINED_VARIANTS: dict[str, Mapping[str, Network]] = {
    "augreg": AUGREG,
    "dinov2": DINOV2,
    "mae": MAE,
    "beit": BEIT,
    "uniperceiver": UNIPERCEIVER,
}
"""The networks of the paper's comparison of pretraining methods, by the suffix of the model's name."""
