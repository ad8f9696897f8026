"""Detection and instance segmentation."""

from piip.tasks.detection.config import DetectorConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.result import Detections, Instances

__all__ = ["Detections", "Detector", "DetectorConfig", "Instances"]
