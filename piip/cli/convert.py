"""``piip convert``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.cli.coco import CATEGORY_IDS, CLASSES
from piip.cli.console import console
from piip.errors import ConfigError

if TYPE_CHECKING:
    from piip.config import PIIPConfig
    from piip.tasks.detection import DetectorConfig


def convert_released(checkpoint: Path, out: Path, model: str = "", recipe: Path | None = None) -> Path:
    """Turn a released checkpoint into a model folder.

    A released Mask R-CNN needs the recipe it was trained with, which says how images are prepared; the result is
    a folder that piip predict and piip eval load. With --model alone, only the network is converted: that of a
    detector or segmenter, the vision tower of a LLaVA, a classifier with its heads.

    Args:
        checkpoint: A released .pth file or the folder of a LLaVA; nothing in it is unpickled.
        out: The new folder.
        model: The published configuration of the network; the recipe's by default.
        recipe: A recipe of recipes/coco.
    """
    from piip.convert.checkpoint import convert_checkpoint
    from piip.hub import save_pretrained
    from piip.predict import Predictor
    from piip.presets import get_config
    from piip.tasks.detection import Detector
    from piip.train.recipe import load_recipe

    loaded = load_recipe(recipe) if recipe is not None else None
    name = model or (loaded.model.name if loaded else None)
    if not name:
        raise ConfigError("Give --model NAME for a network alone, or --recipe FILE for a detector.")
    config = get_config(name)
    if loaded is None:
        save_pretrained(convert_checkpoint(checkpoint, config), out)
    else:
        detector = convert_checkpoint(checkpoint, config, _head(loaded.detector, config))
        assert isinstance(detector, Detector)
        Predictor(detector, loaded.image, CATEGORY_IDS, device="cpu").save(out)
    console().print(f"converted {checkpoint} to {out}", markup=False)
    return out


def _head(settings: dict[str, Any], config: "PIIPConfig") -> "DetectorConfig":
    """Return the released detector on a network; only its channels and padding differ between checkpoints."""
    from piip.network import build_on_meta
    from piip.tasks.detection import DetectorConfig

    network = build_on_meta(config)
    described = {"in_channels": network.out_channels, "strides": tuple(map(int, network.strides))}
    return DetectorConfig.from_dict(described | settings | {"classes": CLASSES})
