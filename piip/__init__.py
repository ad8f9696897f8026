"""piip: Parameter-Inverted Image Pyramid Networks.

Names are imported when they are first used, so that ``import piip`` costs little more than ``import torch``.
"""

import contextlib
import gc
import importlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from piip._version import __version__

if TYPE_CHECKING:
    from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig
    from piip.convert import from_official
    from piip.data.settings import AugmentedTest
    from piip.factory import build, create_model
    from piip.folding import optimize
    from piip.hub import from_pretrained, save_pretrained
    from piip.memory import keep_freed_memory
    from piip.network import PIIP, build_on_meta
    from piip.predict import (
        ClassificationPredictor,
        DetectionPredictor,
        Predictor,
        SegmentationPredictor,
        load,
    )
    from piip.presets import get_config, list_models
    from piip.tasks.classification import ClassifierConfig, ImageClassifier
    from piip.tasks.classified import Classification
    from piip.tasks.detection import (
        DINO,
        RCNN,
        CascadeRCNN,
        CascadeRCNNConfig,
        Detections,
        Detector,
        DINOConfig,
        RCNNConfig,
    )
    from piip.tasks.segmentation import Segmentation, Segmenter, SegmenterConfig

_HOMES = {
    "piip.config": ("BranchConfig", "InteractionConfig", "MergingConfig", "PIIPConfig"),
    "piip.convert": ("from_official",),
    "piip.data.settings": ("AugmentedTest",),
    "piip.factory": ("build", "create_model"),
    "piip.folding": ("optimize",),
    "piip.hub": ("from_pretrained", "save_pretrained"),
    "piip.memory": ("keep_freed_memory",),
    "piip.network": ("PIIP", "build_on_meta"),
    "piip.predict": (
        "ClassificationPredictor",
        "DetectionPredictor",
        "Predictor",
        "SegmentationPredictor",
        "load",
    ),
    "piip.presets": ("get_config", "list_models"),
    "piip.tasks.classification": ("ClassifierConfig", "ImageClassifier"),
    "piip.tasks.classified": ("Classification",),
    "piip.tasks.detection": (
        "CascadeRCNN",
        "CascadeRCNNConfig",
        "DINO",
        "RCNN",
        "DINOConfig",
        "Detections",
        "Detector",
        "RCNNConfig",
    ),
    "piip.tasks.segmentation": ("Segmentation", "Segmenter", "SegmenterConfig"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DINO",
    "PIIP",
    "RCNN",
    "AugmentedTest",
    "BranchConfig",
    "CascadeRCNN",
    "CascadeRCNNConfig",
    "Classification",
    "ClassificationPredictor",
    "ClassifierConfig",
    "DINOConfig",
    "DetectionPredictor",
    "Detections",
    "Detector",
    "ImageClassifier",
    "InteractionConfig",
    "MergingConfig",
    "PIIPConfig",
    "Predictor",
    "RCNNConfig",
    "Segmentation",
    "SegmentationPredictor",
    "Segmenter",
    "SegmenterConfig",
    "__version__",
    "build",
    "build_on_meta",
    "create_model",
    "from_official",
    "from_pretrained",
    "get_config",
    "keep_freed_memory",
    "list_models",
    "load",
    "optimize",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, or a submodule."""
    with _collector_resting():
        if name in _HOME_OF:
            return getattr(importlib.import_module(_HOME_OF[name]), name)
        if not name.startswith("_") and importlib.util.find_spec(f"piip.{name}") is not None:
            return importlib.import_module(f"piip.{name}")
    raise AttributeError(f"module 'piip' has no attribute {name!r}")


@contextlib.contextmanager
def _collector_resting() -> Iterator[None]:
    """Look for no garbage: importing torch and timm makes 400,000 objects that stay, searched again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
