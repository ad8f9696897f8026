"""Semantic segmentation with UperNet (HEADS.md section 3)."""

from piip.tasks.segmentation.augmented import segment_views
from piip.tasks.segmentation.config import SegmenterConfig
from piip.tasks.segmentation.result import Segmentation
from piip.tasks.segmentation.segmenter import Segmenter

__all__ = ["Segmentation", "Segmenter", "SegmenterConfig", "segment_views"]
