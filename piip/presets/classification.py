"""ImageNet classification (SPEC 16.3): class tokens, one map per branch; the heads belong to the task."""

from collections.abc import Iterator
from dataclasses import replace

from piip.config import InteractionConfig, MergingConfig, PIIPConfig
from piip.presets.building import MAPS, name_of, pyramid, single
from piip.presets.networks import Network

# The class token gets no position embedding, whatever it was trained with.
_PLAIN_CLASS_TOKEN = {"no_embed_class": True}
_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large"}


def _deit1(letter: str, rate: float) -> Network:
    arch = f"deit_{_SIZES[letter]}_patch16_224"
    options = {"init_values": 1.0} | _PLAIN_CLASS_TOKEN
    return Network(arch, 12, f"{arch}.fb_in1k", rate, "constant", options=options)


def _augreg(letter: str, rate: float) -> Network:
    arch = f"vit_{_SIZES[letter]}_patch16_224"
    depth = 24 if letter == "l" else 12
    pretrained = f"{arch}.augreg_in21k_ft_in1k"
    return Network(arch, depth, pretrained, rate, "constant", options=_PLAIN_CLASS_TOKEN)


DEIT1 = {"t": _deit1("t", 0.05), "s": _deit1("s", 0.05), "b": _deit1("b", 0.2)}
AUGREG = {"s": _augreg("s", 0.05), "b": _augreg("b", 0.2), "l": _augreg("l", 0.4)}


def configs() -> Iterator[tuple[str, PIIPConfig]]:
    """Yield the classification networks by name."""
    sizes = (368, 192, 128)
    yield name_of("tsb", sizes, "cls"), pyramid("tsb", sizes, DEIT1, merging=MAPS, prefix_tokens=True)
    for sizes in ((320, 160, 96), (384, 192, 128)):
        yield name_of("sbl", sizes, "cls"), pyramid("sbl", sizes, AUGREG, merging=MAPS, prefix_tokens=True)
    yield "vit_b_224_cls", single(DEIT1["b"], 224, merging=MAPS)
    yield "vit_l_224_cls", single(AUGREG["l"], 224, merging=MAPS)
    yield "piip_b_512_256_128_cls", _from_scratch()


def _from_scratch() -> PIIPConfig:
    """Return the network that the paper trains from random weights (v1 Table 13)."""
    base = replace(DEIT1["b"], pretrained=None, drop_path_rate=0.0, options={"init_values": 1.0})
    shapes = {"t": (160, 2), "s": (320, 4), "b": (640, 8)}
    networks = {
        letter: replace(base, options=dict(base.options) | {"embed_dim": dim, "num_heads": heads})
        for letter, (dim, heads) in shapes.items()
    }
    merging = MergingConfig("linear", pyramid_levels=())
    return pyramid("tsb", (512, 256, 128), networks, [16, None, None], 12, InteractionConfig(), merging)
