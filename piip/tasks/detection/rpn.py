"""The region proposal network: where objects may be (HEADS.md 2.2, 2.5, 2.8)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from piip.tasks.detection.anchors import Size, base_anchors, boxes_inside, cells_inside, grid_anchors
from piip.tasks.detection.boxes import BoxCoder, clip
from piip.tasks.detection.config import TwoStageConfig
from piip.tasks.detection.matching import Matcher, Sample, Sampler


class RPNOutput(NamedTuple):
    """Raw predictions for the anchors of each level: n_l = cells * anchors per cell, anchors fastest."""

    logits: list[Tensor]  # (B, n_l)
    deltas: list[Tensor]  # (B, n_l, 4)
    anchors: list[Tensor]  # (n_l, 4)
    grids: list[Size]


class Proposals(NamedTuple):
    """Boxes (n, 4) of one image with their objectness (n,), best first."""

    boxes: Tensor
    scores: Tensor


class RegionProposals(nn.Module):
    """Scores and moves the anchors of every level with one small shared head.

    Args:
        config: The detector; its strides get one more level, twice the last.
    """

    def __init__(self, config: TwoStageConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = (*config.strides, 2 * config.strides[-1])
        self.head = RPNHead(config.fpn_channels, len(config.anchor_ratios))
        self.coder = BoxCoder()
        self.matcher = Matcher(config.rpn_positive_iou, config.rpn_negative_iou, config.rpn_min_iou)
        self.sampler = Sampler(config.rpn_samples, config.rpn_positive_fraction)

    def forward(self, maps: Sequence[Tensor]) -> RPNOutput:
        """Predict from the pyramid's maps (B, C, H_l, W_l)."""
        logits, deltas = self.head(list(maps))
        grids: list[Size] = [(m.shape[2], m.shape[3]) for m in maps]
        return RPNOutput(
            [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
            [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas],
            [self._anchors(grid, stride, maps[0]) for grid, stride in zip(grids, self.strides, strict=True)],
            grids,
        )

    @torch.no_grad()
    def propose(self, output: RPNOutput, sizes: Tensor, pre_nms: int, post_nms: int) -> list[Proposals]:
        """Return the best boxes of each image.

        Args:
            output: Of :meth:`forward`.
            sizes: Height and width of the images without padding, (B, 2); boxes are clipped to them.
            pre_nms: Boxes kept per level before suppression.
            post_nms: Boxes kept per image after it.
        """
        scores, boxes, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(*output[:3], strict=True)):
            best, index = logits.sigmoid().topk(min(pre_nms, logits.shape[1]))
            scores.append(best)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(clip(self.coder.decode(anchors[index], chosen), sizes[:, None]))
            levels.append(torch.full_like(index[0], level))
        return [
            self._suppress(b, s, torch.cat(levels), post_nms)
            for b, s in zip(torch.cat(boxes, 1), torch.cat(scores, 1), strict=True)
        ]

    def loss(
        self,
        output: RPNOutput,
        sizes: Sequence[Size],
        padded_sizes: Sequence[Size],
        objects: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return ``loss_rpn_cls`` and ``loss_rpn_box``.

        Args:
            output: Of :meth:`forward`.
            sizes: (height, width) of each image without padding.
            padded_sizes: (height, width) of each image with its own padding; anchors beyond it do not train.
            objects: Boxes (M_i, 4) of each image.
        """
        logits, deltas = torch.cat(output.logits, 1), torch.cat(output.deltas, 1)
        anchors = torch.cat(output.anchors)
        total, classification, regression = 0, logits.new_zeros(()), deltas.sum() * 0
        for image, (size, padded, boxes) in enumerate(zip(sizes, padded_sizes, objects, strict=True)):
            sample, matched = self.sample(output, size, padded, boxes)
            positive, negative = sample
            total += max(len(positive), 1) + max(len(negative), 1)
            chosen = logits[image, torch.cat(sample)]
            wanted = (torch.arange(len(chosen), device=chosen.device) < len(positive)).to(chosen.dtype)
            classification = classification + F.binary_cross_entropy_with_logits(
                chosen, wanted, reduction="sum"
            )
            target = self.coder.encode(anchors[positive], boxes[matched])
            regression = regression + F.smooth_l1_loss(
                deltas[image, positive], target, beta=self.config.rpn_beta or 0.0, reduction="sum"
            )
        return {"loss_rpn_cls": classification / total, "loss_rpn_box": regression / total}

    @torch.no_grad()
    def sample(
        self, output: RPNOutput, size: Size, padded_size: Size, objects: Tensor
    ) -> tuple[Sample, Tensor]:
        """Choose the anchors of one image that train.

        Args:
            output: Of :meth:`forward`.
            size: (height, width) of the image without padding.
            padded_size: The same with its own padding; anchors of cells beyond it do not train.
            objects: Boxes (M, 4).

        Returns:
            Their indices among all anchors of all levels, and the object (P,) of each positive one.
        """
        anchors = torch.cat(output.anchors)
        usable = torch.cat(
            [
                cells_inside(grid, stride, padded_size, len(self.config.anchor_ratios), anchors.device)
                for grid, stride in zip(output.grids, self.strides, strict=True)
            ]
        )
        if self.config.rpn_inside:
            usable &= boxes_inside(anchors, size)
        inside = usable.nonzero()[:, 0]
        matched = self.matcher(anchors[inside], objects)
        positive, negative = self.sampler(matched)
        return Sample(inside[positive], inside[negative]), matched[positive]

    def _anchors(self, grid: Size, stride: int, like: Tensor) -> Tensor:
        base = base_anchors(stride * self.config.anchor_scale, self.config.anchor_ratios)
        return grid_anchors(base.to(like.device), grid, stride)

    def _suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, count: int) -> Proposals:
        solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, levels = boxes[solid], scores[solid], levels[solid]
        kept = batched_nms(boxes, scores, levels, self.config.rpn_nms)[:count]
        return Proposals(boxes[kept], scores[kept])
