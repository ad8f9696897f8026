"""Metrics of semantic segmentation and classification, from counts of what was taken for what."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]


def count_pixels(found: Tensor, truth: Tensor, num_classes: int, ignored: int) -> Counts:
    """Return how many pixels of each class (rows) were taken for each class (columns).

    Args:
        found: Labels of any shape.
        truth: Labels of the same shape; those equal to ``ignored`` do not count.
        num_classes: Classes C.
        ignored: Label of what has no class.

    Returns:
        (C, C).
    """
    kept = truth != ignored
    pairs = truth[kept].long() * num_classes + found[kept].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu().numpy()


@dataclass(frozen=True)
class SegmentationScores:
    """Metrics of a segmenter.

    A class that neither truth nor prediction has is left out of the mean IoU, one that the truth has not of the
    mean accuracy.

    Attributes:
        mIoU: Mean over classes of intersection over union.
        mAcc: Mean over classes of the share of its pixels that were found.
        aAcc: Share of all pixels that were found.
        classes: IoU and Acc of every class; None where neither truth nor prediction has the class.
    """

    mIoU: float
    mAcc: float
    aAcc: float
    classes: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values."""
        return asdict(self)

    def numbers(self) -> dict[str, float]:
        """Return the overall metrics, for loggers."""
        return {f"val/{name}": getattr(self, name) for name in ("mIoU", "mAcc", "aAcc")}


def segmentation_scores(counts: Iterable[Counts], classes: Sequence[str]) -> SegmentationScores:
    """Return the metrics of all images together.

    Args:
        counts: What `count_pixels` returns of every image.
        classes: Class names in label order.
    """
    total = sum(counts, np.zeros((len(classes), len(classes)), np.int64))
    hit, truth, found = np.diag(total), total.sum(1), total.sum(0)
    union = truth + found - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = hit / union, hit / truth
    by_class = {name: {"IoU": _number(iou[k]), "Acc": _number(accuracy[k])} for k, name in enumerate(classes)}
    whole = truth.sum()
    return SegmentationScores(
        mIoU=_mean(iou),
        mAcc=_mean(accuracy),
        aAcc=float(hit.sum() / whole) if whole else 0.0,
        classes=by_class,
    )


def classification_scores(counts: Counts, top5: float, classes: Sequence[str]) -> dict[str, Any]:
    """Return the accuracies of a classifier, JSON-ready.

    Args:
        counts: (C, C) images of each class (rows) that were taken for each class.
        top5: Share of images whose class is among the five most probable.
        classes: Class names in label order.

    Returns:
        ``top1``, ``top5``, ``classes`` with the accuracy of each, and ``confusion``, the counts.
    """
    hit, truth = np.diag(counts), counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hit / truth
    return {
        "top1": float(hit.sum() / truth.sum()) if truth.sum() else 0.0,
        "top5": top5,
        "classes": {name: {"Acc": _number(accuracy[k])} for k, name in enumerate(classes)},
        "confusion": counts.tolist(),
    }


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
