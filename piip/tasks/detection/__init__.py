"""Detection and instance segmentation."""

from piip.tasks.detection.config import DetectorConfig, RCNNConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.dino import DINO, DINOConfig
from piip.tasks.detection.kinds import describe_detector, detector_class, detector_config, new_detector
from piip.tasks.detection.rcnn import RCNN
from piip.tasks.detection.result import Detections, Instances

__all__ = [
    "DINO",
    "RCNN",
    "DINOConfig",
    "Detections",
    "Detector",
    "DetectorConfig",
    "Instances",
    "RCNNConfig",
    "describe_detector",
    "detector_class",
    "detector_config",
    "new_detector",
]
