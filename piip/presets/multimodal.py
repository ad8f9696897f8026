"""The vision towers of PIIP-LLaVA (SPEC 16.4): one map per branch; projectors belong to the task."""

from collections.abc import Iterator

from piip.config import PIIPConfig
from piip.presets.building import MAPS, name_of, pyramid, single
from piip.presets.networks import Network


def _clip(arch: str, depth: int, grid: int, patch_size: int = 16) -> Network:
    """Return OpenAI's CLIP; its positions stay stored at their own grid."""
    options = {"img_size": grid * patch_size}
    return Network(arch, depth, f"{arch}.openai", patch_size=patch_size, options=options)


CLIP_B = _clip("vit_base_patch16_clip_quickgelu_224", 12, grid=14)
CLIP_L_224 = _clip("vit_large_patch14_clip_quickgelu_224", 24, grid=16)
CLIP_L_336 = _clip("vit_large_patch14_clip_quickgelu_336", 24, grid=24)
CONVNEXT_B = Network("convnext_base", 39, "convnext_base.clip_laiona_augreg_320", patch_size=None)
CONVNEXT_L = Network("convnext_large_mlp", 39, "convnext_large_mlp.clip_laion2b_ft_320", patch_size=None)


def configs() -> Iterator[tuple[str, PIIPConfig]]:
    """Yield the vision towers by name; ``13b`` ones have twice as many interactions."""
    clip_bl = "clip_bl"
    yield name_of(clip_bl, (512, 256), "llava"), _tower(CLIP_B, CLIP_L_224, (512, 256), 2)
    yield name_of(clip_bl, (512, 448), "llava"), _tower(CLIP_B, CLIP_L_336, (512, 448), 12)
    small = name_of("convnext_b_clip_l", (640, 224), "llava")
    yield small, _tower(CONVNEXT_B, CLIP_L_224, (640, 224), 2)
    for letter, network in (("b", CONVNEXT_B), ("l", CONVNEXT_L)):
        for count, suffixes in ((12, ("llava",)), (24, ("llava", "13b"))):
            name = name_of(f"convnext_{letter}_clip_l", (1024, 336), *suffixes)
            yield name, _tower(network, CLIP_L_336, (1024, 336), count)
    original = _clip("vit_large_patch14_clip_quickgelu_336", 24, grid=24, patch_size=14)
    yield "clip_l_336_llava", single(original, 336, merging=MAPS)


def _tower(small: Network, large: Network, sizes: tuple[int, int], num_interactions: int) -> PIIPConfig:
    networks = {"small": small, "large": large}
    return pyramid(
        tuple(networks),
        sizes,
        networks,
        num_interactions=num_interactions,
        merging=MAPS,
        prefix_tokens=True,
    )
