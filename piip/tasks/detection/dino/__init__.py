"""The DINO detector: boxes from queries, without anchors and without suppression (HEADS.md 4)."""

from piip.tasks.detection.dino.config import DINOConfig
from piip.tasks.detection.dino.detector import DINO

__all__ = ["DINO", "DINOConfig"]
