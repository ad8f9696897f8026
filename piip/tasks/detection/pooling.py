"""RoIAlign over the levels of a feature pyramid (HEADS.md 2.6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from piip.tasks.detection.boxes import area


def with_image_index(boxes: Sequence[Tensor]) -> Tensor:
    """Join the boxes (N_i, 4) of each image to RoIs (sum N_i, 5): image index, then xyxy."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])


@dataclass(frozen=True)
class RoIPooler:
    """Pools each RoI from the level that suits its size, with aligned, adaptive RoIAlign.

    torchvision's ``MultiScaleRoIAlign`` is the unaligned kind with two fixed samples and cannot stand in.

    Attributes:
        strides: Pixels per cell of the maps; the finest takes RoIs with a side up to 28 cells, each further
            one twice as large a side.
        output_size: Side of the pooled features.
    """

    strides: tuple[int, ...]
    output_size: int

    def levels(self, rois: Tensor) -> Tensor:
        """Return the index of the level (N,) of each RoI (N, 5)."""
        side = area(rois[:, 1:]).sqrt()
        level = (side / (14 * self.strides[0]) + 1e-6).log2().floor()
        return level.clamp(0, len(self.strides) - 1).long()

    def __call__(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool ``rois`` (N, 5) from ``maps`` (B, C, H_i, W_i) to (N, C, output_size, output_size)."""
        side = self.output_size
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], side, side)
        levels = self.levels(rois)
        for level, stride in enumerate(self.strides):
            rows = (levels == level).nonzero()[:, 0]
            part = roi_align(maps[level], rois[rows], side, 1 / stride, sampling_ratio=-1, aligned=True)
            pooled = pooled.index_copy(0, rows, part)
        return pooled
