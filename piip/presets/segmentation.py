"""ADE20K segmentation: the released H6B networks (SPEC 16.2) and the rows of the paper's Tables 3 to 5."""

from collections.abc import Iterator

from piip.config import PIIPConfig
from piip.presets.building import FUSED_MLP, LEAN, STAGES, name_of, pyramid, single
from piip.presets.detection import H6B
from piip.presets.networks import DEIT, INTERNVIT

H6B_SIZES = ((512, 192), (512, 256), (512, 384), (512, 512))
LH6B_SIZES = ((640, 512, 192), (640, 512, 256), (640, 512, 384))


def configs() -> Iterator[tuple[str, PIIPConfig]]:
    """Yield the segmentation networks by name."""
    for two_sizes in H6B_SIZES:
        config = pyramid(tuple(H6B), two_sizes, H6B, interaction=LEAN, options=FUSED_MLP)
        yield name_of(tuple(H6B), two_sizes, "seg"), config
    lh6b = {"l": DEIT["l"]} | H6B
    for sizes in LH6B_SIZES:
        yield name_of(tuple(lh6b), sizes, "seg"), pyramid(tuple(lh6b), sizes, lh6b, window_size=14)
    # The 21 x 21 map of the largest network is attended to as a whole.
    yield "piip_tsb_896_448_336_seg", pyramid("tsb", (896, 448, 336), window_size=[28, 28, None])
    yield "piip_sbl_1120_448_336_seg", pyramid("sbl", (1120, 448, 336), window_size=[28, 28, None])
    for letter in "bl":
        yield f"vit_{letter}_640_seg", single(DEIT[letter], 640, 28)
    # The levels come from layers 11, 23, 35 and 47.
    yield "internvit_6b_512_seg", single(INTERNVIT, 512, merging=STAGES)
    yield "internvit_6b_512_w14_seg", single(INTERNVIT, 512, 14, merging=STAGES)
