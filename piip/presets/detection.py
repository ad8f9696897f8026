"""COCO detection: the networks of the papers' Tables 1, 2, 3 and 12 and the released DINO configurations."""

from collections.abc import Iterator
from itertools import product

from piip.config import MergingConfig, PIIPConfig
from piip.presets.building import (
    FUSED_MLP,
    LEAN,
    SIMPLE_PYRAMID,
    STAGES,
    name_of,
    pyramid,
    single,
    vitdet_windows,
)
from piip.presets.networks import CONVNEXT, DEIT, DEIT_384, INTERNVIT, MAE, PRETRAINED_VARIANTS, Windows

DINO_LEVELS = MergingConfig(pyramid_levels=(2, 3, 4))
CONVNEXT_LEVELS = MergingConfig("hierarchical", out_interactions=(0, 1, 10))

TSB_SIZES = (
    (896, 672, 448),
    (1120, 672, 448),
    (1120, 896, 448),
    (1344, 896, 448),
    (1568, 896, 448),
    (1568, 896, 672),
    (1568, 1120, 672),
    (1792, 1120, 672),
)
SBL_SIZES = (
    (672, 448, 224),
    (896, 448, 224),
    (1120, 448, 224),
    (1120, 672, 224),
    (1120, 672, 448),
    (1344, 672, 448),
    (1344, 896, 448),
    (1568, 896, 672),
    (1568, 1120, 672),
    (1792, 1120, 672),
)
TSBL_SIZES = (
    (1344, 896, 672, 448),
    (1568, 1120, 672, 448),
    (1792, 1344, 896, 448),
    (1792, 1568, 1120, 448),
)
LH6B_PAPER_SIZES = ((1280, 1024, 256), (1280, 1024, 512), (1280, 1024, 640))
H6B = {"h": MAE["h"], "6b": INTERNVIT}


def configs() -> Iterator[tuple[str, PIIPConfig]]:
    """Yield the detection networks by name."""
    yield from _deit_pyramids()
    yield from _pretraining_variants()
    yield from _billions()
    yield from _convnext_mixes()
    yield from _baselines()


def _deit_pyramids() -> Iterator[tuple[str, PIIPConfig]]:
    for sizes in TSB_SIZES:
        yield name_of("tsb", sizes), pyramid("tsb", sizes, window_size=14)
    yield name_of("tsb", (1792, 1344, 672)), pyramid("tsb", (1792, 1344, 672), window_size=28)
    for sizes in SBL_SIZES:
        # A 14 x 14 map is attended to as a whole: the published cost has no padding to windows of 28.
        windows: list[Windows] = [28, 28, None if sizes[2] == 224 else 28]
        yield name_of("sbl", sizes), pyramid("sbl", sizes, window_size=windows)
    for four_sizes in TSBL_SIZES:
        yield name_of("tsbl", four_sizes), pyramid("tsbl", four_sizes, window_size=28)


def _pretraining_variants() -> Iterator[tuple[str, PIIPConfig]]:
    sizes = (1568, 1120, 672)
    for suffix, networks in PRETRAINED_VARIANTS.items():
        yield name_of("sbl", sizes, suffix), pyramid("sbl", sizes, networks, window_size=28)
    lean = pyramid("sbl", sizes, PRETRAINED_VARIANTS["augreg"], 28, interaction=LEAN, options=FUSED_MLP)
    yield name_of("sbl", sizes, "augreg", "speedup"), lean
    sizes = (1792, 1120, 672)
    windows = [vitdet_windows(DEIT_384[letter], 24) for letter in "sbl"]
    yield (
        name_of("sbl", sizes, "deit384", "dino"),
        pyramid("sbl", sizes, DEIT_384, windows, merging=DINO_LEVELS),
    )


def _billions() -> Iterator[tuple[str, PIIPConfig]]:
    yield "piip_h6b_1024_512", pyramid(tuple(H6B), (1024, 512), H6B)
    speedup = pyramid(tuple(H6B), (1024, 512), H6B, interaction=LEAN, options=FUSED_MLP)
    yield "piip_h6b_1024_512_speedup", speedup
    yield "piip_h6b_1024_768_dino", pyramid(tuple(H6B), (1024, 768), H6B, merging=DINO_LEVELS)
    released = {"l": DEIT_384["l"]} | H6B
    for suffixes, merging in (((), SIMPLE_PYRAMID), (("dino",), DINO_LEVELS)):
        sizes = (1536, 1024, 512)
        config = pyramid(tuple(released), sizes, released, None, 4, LEAN, merging, options=FUSED_MLP)
        yield name_of(tuple(released), sizes, *suffixes), config
    paper = {"l": DEIT["l"]} | H6B
    for sizes in LH6B_PAPER_SIZES:
        yield name_of(tuple(paper), sizes), pyramid(tuple(paper), sizes, paper, window_size=14)


def _convnext_mixes() -> Iterator[tuple[str, PIIPConfig]]:
    kinds = {"c": CONVNEXT, "v": DEIT}
    sizes = (1024, 672, 448)
    for mix in product("cv", repeat=3):
        networks = {letter: kinds[kind][letter] for kind, letter in zip(mix, "tsb", strict=True)}
        name = "_".join(kind + letter for kind, letter in zip(mix, "tsb", strict=True))
        yield name_of(name, sizes), pyramid("tsb", sizes, networks, 14, merging=CONVNEXT_LEVELS)


def _baselines() -> Iterator[tuple[str, PIIPConfig]]:
    for letter in "bl":
        yield f"vit_{letter}_1024", single(DEIT[letter], 1024, vitdet_windows(DEIT[letter], 14))
    yield "internvit_6b_1024", single(INTERNVIT, 1024)
    yield "internvit_6b_1024_w14", single(INTERNVIT, 1024, 14)
    yield "convnext_b_1024", single(CONVNEXT["b"], 1024, merging=STAGES)
