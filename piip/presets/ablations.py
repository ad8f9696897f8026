"""The other designs of the paper's ablations: Tables 7 (pyramids), 9 (interactions) and 10 (directions)."""

from collections.abc import Iterator

from piip.config import InteractionConfig, PIIPConfig
from piip.presets.building import name_of, pyramid, vitdet_windows
from piip.presets.networks import DEIT

SIZES = (1120, 896, 448)
NUM_INTERACTIONS = (1, 2, 6, 12)
RING = ((3, 1), (1, 2), (2, 3))
"""The interaction directions of Table 10's third column as far as its cost tells: T to B to S to T."""
ALL_LINKS = ((2, 1), (1, 2), (3, 2), (2, 3), (3, 1), (1, 3))


def configs() -> Iterator[tuple[str, PIIPConfig]]:
    """Yield the ablations' networks by name; the paper's own choices are among the detection networks."""
    yield from _pyramids()
    yield from _interactions()


def _pyramids() -> Iterator[tuple[str, PIIPConfig]]:
    for sizes in ((896, 448, 224), (896, 672, 224)):
        yield name_of("bbb", sizes, "k0"), pyramid("bbb", sizes, window_size=14, interaction=None)
    shared = pyramid("bbb", (896, 448, 224), window_size=14, interaction=None)
    yield name_of("bbb", (896, 448, 224), "shared"), shared.replace(shared_weights=True)
    # Parameter-direct: the largest network reads the largest image.
    windows = [14, 14, vitdet_windows(DEIT["b"], 14)]
    yield name_of("tsb", (448, 672, 896)), pyramid("tsb", (448, 672, 896), window_size=windows)
    yield name_of("lll", (896, 448, 224)), pyramid("lll", (896, 448, 224), window_size=14)
    # 53 tokens a side: the coarsest level drops the last one, as in the published cost.
    equal = pyramid("sbl", (848, 848, 848), window_size=28)
    yield name_of("sbl", (848, 848, 848)), equal.replace(size_divisor=16)


def _interactions() -> Iterator[tuple[str, PIIPConfig]]:
    yield name_of("tsb", SIZES, "k0"), pyramid("tsb", SIZES, window_size=14, interaction=None)
    for count in NUM_INTERACTIONS:
        regular = InteractionConfig(attention="regular")
        yield name_of("tsb", SIZES, "regular", f"k{count}"), pyramid("tsb", SIZES, DEIT, 14, count, regular)
        if count < 12:
            yield name_of("tsb", SIZES, f"k{count}"), pyramid("tsb", SIZES, DEIT, 14, count)
    for variant, links in (("ring", RING), ("all_links", ALL_LINKS)):
        directed = InteractionConfig(links=links)
        yield name_of("tsb", SIZES, variant), pyramid("tsb", SIZES, DEIT, 14, interaction=directed)
