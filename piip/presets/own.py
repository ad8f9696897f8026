"""Networks of our own: small ones for one GPU or a CPU, and pyramids of newer pretrained networks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from piip.config import InteractionConfig, PIIPConfig
from piip.presets.building import name_of, pyramid, vitdet_windows
from piip.presets.networks import DEIT, Network

NANO_SIZES = (512, 384, 256)
NARROW = InteractionConfig(num_heads=8, drop_path_rate=0.1)
"""Interactions whose heads divide a width of 48."""


def _dinov3(arch: str, tag: str, rate: float) -> Network:
    return Network(arch, 12, f"{arch}.{tag}", rate)


DINOV3 = {
    "t": _dinov3("vit_tiny_patch16_dinov3_qkvb", "eupe_lvd1689m", 0.05),
    "s": _dinov3("vit_small_patch16_dinov3", "lvd1689m", 0.05),
    "b": _dinov3("vit_base_patch16_dinov3", "lvd1689m", 0.15),
    "l": replace(_dinov3("vit_large_patch16_dinov3", "lvd1689m", 0.4), depth=24),
}


def configs() -> Iterator[tuple[str, PIIPConfig]]:
    """Yield our own networks by name."""
    yield "piip_nano", _narrow(depth=4)
    yield "piip_nano_deit", _narrow(depth=12)
    yield "piip_tsb_512_384_256", pyramid("tsb", (512, 384, 256))
    for letters, sizes in (("tsb", (1024, 768, 512)), ("sbl", (1024, 768, 512))):
        windows = [vitdet_windows(DINOV3[letter], 16) for letter in letters]
        yield name_of(letters, sizes, "dinov3"), pyramid(letters, sizes, DINOV3, windows)


def _narrow(depth: int) -> PIIPConfig:
    """Return three ViTs of 48, 96 and 192 channels with four interactions.

    Args:
        depth: Blocks of the largest one; with all 12, it is DeiT-Tiny and can start from its weights.
    """
    shapes: Mapping[str, dict[str, Any]] = {
        "n": {"embed_dim": 48, "depth": 4, "num_heads": 2},
        "u": {"embed_dim": 96, "depth": 4, "num_heads": 3},
    }
    networks = {
        letter: replace(DEIT["t"], depth=4, pretrained=None, drop_path_rate=0.0, options=shape)
        for letter, shape in shapes.items()
    }
    networks["t"] = replace(DEIT["t"], depth=depth, pretrained=DEIT["t"].pretrained if depth == 12 else None)
    options = {} if depth == 12 else {"depth": depth}
    networks["t"] = replace(networks["t"], options=dict(DEIT["t"].options) | options)
    return pyramid("nut", NANO_SIZES, networks, num_interactions=4, interaction=NARROW)
