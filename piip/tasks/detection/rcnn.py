"""Mask R-CNN and Faster R-CNN as the released checkpoints have them (HEADS.md sections 1.5 and 2)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from piip.merging import PyramidLevel
from piip.network import PIIP
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.box_head import BoxHead, RoISamples, Scored
from piip.tasks.detection.config import RCNNConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.masks import MaskHead, compress, mask_targets
from piip.tasks.detection.pooling import RoIPooler, with_image_index
from piip.tasks.detection.result import Instances
from piip.tasks.detection.rpn import RegionProposals
from piip.tasks.detection.targets import Target

if TYPE_CHECKING:
    from piip.data.geometry import ImageMeta


class RCNN(Detector):
    """A two-stage detector on any backbone with four maps; masks are a matter of the config.

    Its losses are ``loss_rpn_cls``, ``loss_rpn_box``, ``loss_cls``, ``loss_box`` and, for masks, ``loss_mask``.

    Args:
        config: What to detect and how.
        backbone: As for `Detector`.
    """

    config: RCNNConfig
    config_class = RCNNConfig

    def __init__(self, config: RCNNConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.fpn = FeaturePyramidNetwork(list(config.in_channels), config.fpn_channels, LastLevelMaxPool())
        for layer in self.fpn.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        self.rpn = RegionProposals(config)
        self.box_pooler = RoIPooler(config.strides, config.box_pool)
        self.box_head = BoxHead(config)
        self.mask_pooler = RoIPooler(config.strides, config.mask_pool)
        self.mask_head = MaskHead(config) if config.masks else None

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn the backbone's maps into the five float32 maps of the feature pyramid, fine to coarse."""
        self._check_maps(maps)
        return list(self.fpn({str(level): x.float() for level, x in enumerate(maps)}).values())

    def fold(self) -> None:
        """Let the backbone's last upsamplings take over the pyramid's lateral convolutions, for inference.

        Between the two there is nothing; together they are a third of their work.
        """
        if not isinstance(self.backbone, PIIP):
            return
        channels = list(self.config.in_channels)
        for index, level in enumerate(self.backbone.levels):
            (lateral,) = self.fpn.inner_blocks[index]
            if isinstance(level, PyramidLevel) and level.absorb(lateral):
                self.fpn.inner_blocks[index] = nn.Identity()
                channels[index] = self.config.fpn_channels
        self.backbone.out_channels = tuple(channels)
        self.config = replace(self.config, in_channels=tuple(channels))

    def losses(
        self, pyramid: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch (HEADS.md 2.8).

        Args:
            pyramid: Five maps of :meth:`pyramid`.
            sizes: (height, width) of the images without padding.
            targets: As for :meth:`forward`.
        """
        objects = [target["boxes"].float() for target in targets]
        padded = [self.padded_size(size) for size in sizes]
        output = self.rpn(pyramid)
        losses = self.rpn.loss(output, padded, objects)
        limits = torch.tensor(sizes, device=pyramid[0].device)
        proposals = self.rpn.propose(output, limits, self.config.rpn_pre_nms_train)
        samples = [
            self.box_head.sample(proposal.boxes, boxes, target["labels"])
            for proposal, boxes, target in zip(proposals, objects, targets, strict=True)
        ]
        rois = with_image_index([sample.boxes for sample in samples])
        logits, deltas = self.box_head(self.box_pooler(pyramid, rois))
        losses |= self.box_head.loss(logits, deltas, samples)
        if self.mask_head is not None:
            losses |= self._mask_loss(self.mask_head, pyramid, samples, targets, padded)
        return losses

    @torch.no_grad()
    def detect(
        self, pyramid: Sequence[Tensor], sizes: Sequence[Size], metas: "Sequence[ImageMeta] | None" = None
    ) -> list[Instances]:
        """Return the detections of a batch (HEADS.md 2.5 to 2.7).

        Args:
            pyramid: Five maps of :meth:`pyramid`.
            sizes: (height, width) of the images without padding.
            metas: As for :meth:`forward`.
        """
        originals = [meta.original_size for meta in metas] if metas else list(sizes)
        factors = [meta.scale_factor * 2 for meta in metas] if metas else [(1.0,) * 4] * len(sizes)
        scales = torch.tensor(factors, device=pyramid[0].device)
        scored = self.detect_boxes(pyramid, torch.tensor(sizes, device=scales.device), scales)
        if self.mask_head is None:
            return [Instances(*found, None, size) for found, size in zip(scored, originals, strict=True)]
        scaled = [found.boxes * scale for found, scale in zip(scored, scales, strict=True)]
        masks = self.detect_masks(pyramid, scaled, [found.labels for found in scored])
        threshold = self.config.mask_threshold
        return [
            Instances(*found, compress(mask, boxes / scale, size, threshold), size)
            for found, mask, boxes, scale, size in zip(scored, masks, scaled, scales, originals, strict=True)
        ]

    def detect_boxes(self, pyramid: Sequence[Tensor], sizes: Tensor, scales: Tensor) -> list[Scored]:
        """Return the boxes found in each image.

        Args:
            pyramid: Five maps of :meth:`pyramid`.
            sizes: (height, width) of the images without padding, (B, 2).
            scales: ``(sx, sy, sx, sy)`` by which they were resized, (B, 4).
        """
        proposals = self.rpn.propose(self.rpn(pyramid), sizes, self.config.rpn_pre_nms_test)
        boxes = [proposal.boxes for proposal in proposals]
        logits, deltas = self.box_head(self.box_pooler(pyramid, with_image_index(boxes)))
        counts = [len(b) for b in boxes]
        parts = zip(boxes, logits.split(counts), deltas.split(counts), sizes, scales, strict=True)
        return [self.box_head.detect(*part) for part in parts]

    def detect_masks(
        self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the mask probabilities (D_i, 28, 28) of the labels of boxes (D_i, 4) in network pixels."""
        assert self.mask_head is not None, "the caller asks a detector with masks"
        label = torch.cat(list(labels))
        logits = self.mask_head(self.mask_pooler(pyramid, with_image_index(boxes)))
        own = logits[torch.arange(len(label), device=label.device), label]
        return own.sigmoid().split([len(b) for b in boxes])

    def _mask_loss(
        self,
        head: MaskHead,
        pyramid: Sequence[Tensor],
        samples: Sequence[RoISamples],
        targets: Sequence[Target],
        padded: Sequence[Size],
    ) -> dict[str, Tensor]:
        boxes = [sample.boxes[: len(sample.objects)] for sample in samples]
        wanted = [
            mask_targets(box, sample.objects, target["masks"], size, 2 * self.config.mask_pool)
            for box, sample, target, size in zip(boxes, samples, targets, padded, strict=True)
        ]
        labels = torch.cat([sample.labels[: len(sample.objects)] for sample in samples])
        logits = head(self.mask_pooler(pyramid, with_image_index(boxes)))
        return head.loss(logits, labels, torch.cat(wanted))
