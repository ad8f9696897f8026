"""Detection and instance segmentation."""

from piip.tasks.detection.augmented import detect_views
from piip.tasks.detection.cascade import CascadeRCNN
from piip.tasks.detection.config import BoxStage, CascadeRCNNConfig, DetectorConfig, RCNNConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.dino import DINO, DINOConfig
from piip.tasks.detection.kinds import describe_detector, detector_class, detector_config, new_detector
from piip.tasks.detection.rcnn import RCNN
from piip.tasks.detection.result import Detections, Instances
from piip.tasks.detection.two_stage import TwoStage

__all__ = [
    "DINO",
    "RCNN",
    "BoxStage",
    "CascadeRCNN",
    "CascadeRCNNConfig",
    "DINOConfig",
    "Detections",
    "Detector",
    "DetectorConfig",
    "Instances",
    "RCNNConfig",
    "TwoStage",
    "describe_detector",
    "detect_views",
    "detector_class",
    "detector_config",
    "new_detector",
]
