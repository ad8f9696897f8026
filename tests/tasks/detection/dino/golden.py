"""The original's small DINO, loaded into ours."""

from piip.convert.dino import dino_state_dict
from piip.tasks.detection import DINO, DINOConfig
from tests.tasks.detection.golden import FixedMaps, load

SIZES = [(213, 287), (161, 250)]
CONFIG = DINOConfig(
    classes=("a", "b", "c", "d", "e"),
    in_channels=(24, 32, 40),
    embed_dim=64,
    encoder_depth=2,
    decoder_depth=2,
    ffn_dim=48,
    num_queries=20,
    num_denoising=12,
    detections_per_image=30,
)


def detector(shared):
    maps = [load(shared, "dino_infer")[f"in.{i}"] for i in range(3)]
    model = DINO(CONFIG, FixedMaps(maps))
    model.load_state_dict(dino_state_dict(load(shared, "dino_weights")))
    return model.eval()
