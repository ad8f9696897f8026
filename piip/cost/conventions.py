"""How the papers' figures were counted where the network alone does not decide it (CONVENTION.md, section 4)."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from piip.config import PIIPConfig

Script = Literal["classification", "mmdetection", "llava"]


@dataclass(frozen=True)
class Convention:
    """Choices of the original's counting scripts.

    Attributes:
        script: Which of the three scripts counts; each has its own rule for merging, heads and positions. None
            derives it from the network.
        padded_qkv: Whether the qkv projection runs on windows that are filled up. None: in all classes but the
            original's DeiT class, and everywhere in mmdetection.
        class_head: Count the 1000-way classifier that the classification script adds to every network.
        layernorm: InternViT is counted with LayerNorm (which is counted) instead of RMSNorm (which is free) and
            without q/k norm: the classification script's defaults.
        idle_blocks: Blocks per branch (branch 1 first) whose linear layers and norms are not counted.
    """

    script: Script | None = None
    padded_qkv: bool | None = None
    class_head: bool = True
    layernorm: bool = False
    idle_blocks: tuple[int, ...] = ()


# The six LH6B figures fit only like this; with all blocks the networks cost more (CONVENTION.md, section 7).
_LH6B = Convention(padded_qkv=False, layernorm=True, idle_blocks=(0, 20, 0))
_EXCEPTIONS = {
    "internvit_6b_*_w14*": Convention(padded_qkv=False, layernorm=True),
    "piip_lh6b_1280_*": _LH6B,
    "piip_lh6b_640_*": _LH6B,
    "piip_b_512_256_128_cls": Convention(class_head=False),
}


def convention_of(name: str) -> Convention:
    """Return how the published figure of a preset was counted."""
    matches = (convention for pattern, convention in _EXCEPTIONS.items() if fnmatchcase(name, pattern))
    return next(matches, Convention())


def script_of(config: PIIPConfig) -> Script:
    """Return the script that counted a network: one for ConvNeXt detectors, one for LLaVA, one for the rest."""
    archs = [branch.arch for branch in config.branches]
    convolutional = [arch.startswith("convnext") for arch in archs]
    if config.merging.kind == "hierarchical":
        return "mmdetection"
    per_branch = config.merging.kind == "none" and not config.merging.pyramid_levels
    if per_branch and (any(convolutional) or any("clip" in arch for arch in archs)):
        return "llava"
    return "mmdetection" if all(convolutional) else "classification"
