"""Which detectors there are, by the names that recipes and saved models give them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from piip.errors import ConfigError, nearest
from piip.tasks.detection.cascade import CascadeRCNN
from piip.tasks.detection.config import DetectorConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.dino import DINO
from piip.tasks.detection.rcnn import RCNN

KINDS: Mapping[str, type[Detector]] = {"rcnn": RCNN, "cascade_rcnn": CascadeRCNN, "dino": DINO}
DEFAULT = "rcnn"


def detector_config(head: Mapping[str, Any], described: Mapping[str, Any]) -> DetectorConfig:
    """Return the description of a detector.

    Args:
        head: ``kind`` and fields of its config that differ from the defaults.
        described: Fields that follow from the network and the data; ``head`` may replace them, but for the classes.

    Raises:
        ConfigError: There is no such kind, or a field is unknown or impossible.
    """
    config_class = detector_class(head).config_class
    fields = {key: value for key, value in head.items() if key != "kind"}
    for key in fields:
        _refuse_others_setting(key, config_class)
    classes = {key: described[key] for key in ("classes",) if key in described}
    return config_class.from_dict({**described, **fields, **classes})


def _refuse_others_setting(key: str, config_class: type[DetectorConfig]) -> None:
    """Refuse a setting that only other kinds have; to one that none has, the description finds similar names."""
    owners = [name for name, kind in KINDS.items() if key in _settings(kind.config_class)]
    if owners and key not in _settings(config_class):
        own = next(name for name, kind in KINDS.items() if kind.config_class is config_class)
        raise ConfigError(
            f"{key} is a setting of the detector kind {' or '.join(owners)}, this one is {own}; remove it, or set "
            f"detector.kind to {owners[0]}."
        )


def _settings(config_class: type[DetectorConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def new_detector(config: DetectorConfig, backbone: nn.Module) -> Detector:
    """Return the detector of a description with a new head."""
    kind = next(kind for kind in KINDS.values() if kind.config_class is type(config))
    return kind(config, backbone)


def detector_class(head: Mapping[str, Any]) -> type[Detector]:
    """Return the class of the ``kind`` of a detector.

    Raises:
        ConfigError: There is no such kind.
    """
    kind = head.get("kind", DEFAULT)
    if kind not in KINDS:
        raise ConfigError(f"There is no detector of the kind {kind!r}. {nearest(str(kind), KINDS)}")
    return KINDS[kind]


def describe_detector(detector: Detector) -> dict[str, Any]:
    """Return ``kind`` and all fields of a detector's config, for `detector_config`."""
    kind = next(name for name, known in KINDS.items() if known is type(detector))
    return {"kind": kind} | detector.config.to_dict()
