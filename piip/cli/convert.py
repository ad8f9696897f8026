"""``piip convert``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from piip.cli.coco import CATEGORY_IDS, CLASSES
from piip.cli.console import console
from piip.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from piip.config import PIIPConfig
    from piip.predict import Predictor
    from piip.tasks.detection import DetectorConfig
    from piip.tasks.segmentation import SegmenterConfig
    from piip.train.recipe import TrainRecipe


NUM_IMAGENET = 1000


def convert_released(
    checkpoint: Path, out: Path, model: str = "", recipe: Path | None = None, language: bool = False
) -> Path:
    """Turn a released checkpoint into a model folder.

    A released detector (Mask R-CNN, Cascade R-CNN, DINO), segmenter (UperNet) or classifier needs the recipe it was
    trained with, which says how images are prepared; the result is a folder that piip predict and piip eval load.
    With --model alone, only the network is converted: that of a detector or segmenter, the vision tower of a LLaVA,
    a classifier with its heads.

    Args:
        checkpoint: A released .pth file or the folder of a LLaVA; nothing in it is unpickled.
        out: The new folder.
        model: The published configuration of the network; the recipe's by default.
        recipe: A recipe of recipes/coco, recipes/ade20k or recipes/imagenet.
        language: With --model and the folder of a LLaVA: also its projector, language model and tokenizer. The
            result is a folder of transformers, for AutoModelForImageTextToText after ``import piip.llava``.
    """
    from piip.convert.checkpoint import convert_checkpoint
    from piip.hub import save_pretrained
    from piip.presets import get_config
    from piip.train.recipe import load_recipe

    loaded = load_recipe(recipe) if recipe is not None else None
    name = model or (loaded.model.name if loaded else None)
    if not name:
        raise ConfigError(
            "Give --model NAME for a network alone, or --recipe FILE for a detector, segmenter or classifier."
        )
    config = get_config(name)
    if language:
        _convert_language(checkpoint, config, out, alone=loaded is None)
    elif loaded is None:
        save_pretrained(convert_checkpoint(checkpoint, config), out)
    else:
        model_of_recipe = convert_checkpoint(checkpoint, config, _head(loaded, config))
        _predictor(model_of_recipe, loaded).save(out)
    console().print(f"converted {checkpoint} to {out}", markup=False)
    return out


def _convert_language(folder: Path, config: "PIIPConfig", out: Path, alone: bool) -> None:
    if not alone:
        raise ConfigError("--language is for LLaVAs, which have no recipe; give --model NAME of their tower.")
    from piip.errors import require

    require("transformers", "llava", "Converting a language model")
    from piip.llava.conversion import convert_llava
    from piip.llava.loading import save_llava

    llava, processor = convert_llava(folder, config)
    save_llava(llava, processor, out)


def _head(recipe: "TrainRecipe", config: "PIIPConfig") -> "DetectorConfig | SegmenterConfig | None":
    """Return the released head on a network; only its channels and padding differ between checkpoints.

    The heads of classifiers are known by their tensors.
    """
    if recipe.task == "classification":
        return None
    from piip.data import ade20k
    from piip.network import build_on_meta
    from piip.tasks.detection import detector_config
    from piip.tasks.segmentation import SegmenterConfig

    network = build_on_meta(config)
    described: dict[str, Any] = {"in_channels": network.out_channels}
    if recipe.task == "segmentation":
        return SegmenterConfig.from_dict(described | recipe.segmenter | {"classes": ade20k.CLASSES})
    described["strides"] = tuple(map(int, network.strides))
    return detector_config(recipe.detector, described | {"classes": CLASSES})


def _predictor(model: "nn.Module", recipe: "TrainRecipe") -> "Predictor":
    from piip.predict import ClassificationPredictor, DetectionPredictor, SegmentationPredictor
    from piip.tasks.classification import ImageClassifier
    from piip.tasks.detection import Detector

    if isinstance(model, ImageClassifier):
        if model.config.num_classes == NUM_IMAGENET:
            model.config = model.config.replace(classes=_imagenet_classes())
        return ClassificationPredictor(model, recipe.image, device="cpu")
    if isinstance(model, Detector):
        return DetectionPredictor(model, recipe.image, CATEGORY_IDS, device="cpu")
    return SegmentationPredictor(model, recipe.image, device="cpu")


def _imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's classes, each of its own: where two have the same, its number follows."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    names = [known.index_to_description(number).split(",")[0] for number in range(NUM_IMAGENET)]
    return tuple(f"{name} {k}" if names.count(name) > 1 else name for k, name in enumerate(names))
