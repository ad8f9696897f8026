"""Which boxes learn which object, and which of them enter a loss (HEADS.md 2.8)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from piip.tasks.detection.boxes import iou

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Matcher:
    """Assigns every box an object by overlap.

    Attributes:
        positive: IoU from which a box takes the object it overlaps most.
        negative: IoU below which a box is background; in between it is ignored.
        minimum: IoU from which an object's best boxes are its own, whatever they overlap more.
        low_quality: Whether objects claim their best boxes at all.
    """

    positive: float
    negative: float
    minimum: float = 0.0
    low_quality: bool = True

    def __call__(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Match boxes (N, 4) with objects (M, 4).

        Returns:
            int64 (N,): index of the object, or ``BACKGROUND`` or ``IGNORED``.
        """
        if len(objects) == 0 or len(boxes) == 0:
            return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
        overlaps = iou(objects, boxes)
        best, index = overlaps.max(dim=0)
        matched = torch.where(best < self.negative, BACKGROUND, IGNORED)
        matched = torch.where(best >= self.positive, index, matched)
        return self._claim(overlaps, matched) if self.low_quality else matched

    def _claim(self, overlaps: Tensor, matched: Tensor) -> Tensor:
        """Give each object all boxes with exactly its best overlap; of two objects the later one wins."""
        best = overlaps.amax(dim=1, keepdim=True)
        owner, box = ((overlaps == best) & (best >= self.minimum)).nonzero(as_tuple=True)
        claimed = torch.full_like(matched, BACKGROUND).scatter_reduce(0, box, owner, "amax")
        return torch.where(claimed == BACKGROUND, matched, claimed)


class Sample(NamedTuple):
    """Indices of the chosen boxes, int64 and sorted."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class Sampler:
    """Draws a fixed number of boxes at random from torch's CPU generator.

    The draws come in the original's order (positives, then negatives, only where there are too many), so that
    one seed gives the original's sample.

    Attributes:
        count: Boxes per image; fewer when there are not enough.
        positive_fraction: Largest share of objects among them; background fills the rest.
    """

    count: int
    positive_fraction: float

    def __call__(self, matched: Tensor) -> Sample:
        """Choose from the matches (N,) of a :class:`Matcher`."""
        positive = _draw((matched >= 0).nonzero()[:, 0], int(self.count * self.positive_fraction))
        negative = _draw((matched == BACKGROUND).nonzero()[:, 0], self.count - len(positive))
        return Sample(positive, negative)


def _draw(candidates: Tensor, count: int) -> Tensor:
    if len(candidates) <= count:
        return candidates
    chosen = torch.randperm(len(candidates))[:count].to(candidates.device)
    return candidates[chosen].sort().values
