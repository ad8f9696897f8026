"""Suppression of detections that see the same object: dropped, or with lowered scores (HEADS.md 2.6)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from piip.tasks.detection.boxes import iou
from piip.tasks.detection.config import TwoStageConfig

Decay = Callable[[Tensor], Tensor]


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, config: TwoStageConfig) -> tuple[Tensor, Tensor]:
    """Choose the detections of an image; those of different classes leave each other alone.

    Args:
        boxes: Candidates (N, 4).
        scores: Their scores (N,).
        labels: Their classes (N,).
        config: Kind and limits of the suppression.

    Returns:
        Indices (D,) of the chosen ones, best first, and their scores (D,), which Soft-NMS has lowered.
    """
    limit = config.detections_per_image
    if config.nms_kind == "hard":
        kept = batched_nms(boxes, scores, labels, config.nms)[:limit]
        return kept, scores[kept]
    decay = linear(config.nms) if config.nms_kind == "linear" else gaussian(config.soft_nms_sigma)
    return soft_nms(boxes, scores, labels, decay, config.soft_nms_threshold, limit)


def linear(threshold: float) -> Decay:
    """Return the factor of scores by their IoU with a chosen box: ``1 - IoU`` from ``threshold`` on."""
    return lambda overlap: torch.where(overlap >= threshold, 1 - overlap, 1.0)


def gaussian(sigma: float) -> Decay:
    """Return the factor of scores by their IoU with a chosen box: ``exp(-IoU^2 / sigma)``."""
    return lambda overlap: (overlap.square() / -sigma).exp()


def soft_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, decay: Decay, threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Choose the best box of a class again and again, lowering the scores of those that overlap it.

    Soft-NMS (arXiv 1704.04503), for all classes at once. A score never rises, so that the boxes of a class are
    chosen in falling order, and none beyond its first ``limit`` can be among the ``limit`` best of all.

    Args:
        boxes: Candidates (N, 4).
        scores: Their scores (N,), from 0 to 1.
        labels: Their classes (N,).
        decay: Factor of a score by the IoU with the chosen box.
        threshold: Detections need at least this score in the end.
        limit: Detections kept.

    Returns:
        Indices (D,) of the chosen ones, best first, and their lowered scores (D,).
    """
    if not len(boxes):
        return torch.zeros_like(labels), scores
    threshold = max(threshold, torch.finfo(scores.dtype).tiny)  # a score of 0 detects nothing
    index, row, column = _by_class(scores, labels)
    shape = (int(row[-1]) + 1, int(column.max()) + 1)
    # A row for each class that occurs, filled up with negative scores, which no factor makes positive.
    left, table = scores.new_full(shape, -1.0), boxes.new_zeros(*shape, 4)
    candidate = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
    left[row, column], table[row, column], candidate[row, column] = scores[index], boxes[index], index
    classes = torch.arange(shape[0], device=boxes.device)
    chosen, lowered = [index[:0]], [scores[:0]]
    for _ in range(min(shape[1], limit)):
        best, place = left.max(dim=1)
        if best.max() < threshold:
            break
        chosen.append(candidate[classes, place])
        lowered.append(best)
        left *= decay(iou(table[classes, place][:, None], table)[:, 0])
        left[classes, place] = -1.0
    index, final = torch.cat(chosen), torch.cat(lowered)
    order = final.argsort(descending=True, stable=True)[:limit]
    order = order[final[order] >= threshold]
    return index[order], final[order]


def _by_class(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the candidates by class and falling score, and the row and column (N,) of each in a table of them."""
    index = scores.argsort(descending=True, stable=True)
    index = index[labels[index].argsort(stable=True)]
    _, row, counts = labels[index].unique_consecutive(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    return index, row, torch.arange(len(index), device=row.device) - first[row]
