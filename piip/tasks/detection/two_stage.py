"""Detectors of two stages: proposals, and one or more pairs of heads that look at each (HEADS.md section 2)."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from piip.merging import PyramidLevel
from piip.network import PIIP
from piip.ops import at_least_float32
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.box_head import BoxHead, RoISamples, Scored
from piip.tasks.detection.config import TwoStageConfig
from piip.tasks.detection.detector import Detector
from piip.tasks.detection.masks import MaskHead, compress, mask_targets
from piip.tasks.detection.pooling import RoIPooler, with_image_index
from piip.tasks.detection.result import Instances
from piip.tasks.detection.rpn import RegionProposals
from piip.tasks.detection.targets import Target

if TYPE_CHECKING:
    from piip.data.geometry import ImageMeta


class Stage(NamedTuple):
    """The heads of one stage."""

    name: str  # after the names of its losses
    boxes: BoxHead
    masks: MaskHead | None


class TwoStage(Detector):
    """A detector whose RPN proposes boxes that one or more stages of heads classify and move.

    Each stage looks at the boxes of the one before. Their logits and mask probabilities are averaged, the boxes are
    those of the last; with a single stage, this is R-CNN.

    Its losses are ``loss_rpn_cls`` and ``loss_rpn_box``, and of every stage ``loss_cls``, ``loss_box`` and, for
    masks, ``loss_mask``, followed by the stage's name.

    Args:
        config: What to detect and how.
        backbone: As for `Detector`; it has four maps.
    """

    config: TwoStageConfig

    def __init__(self, config: TwoStageConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        self.fpn = FeaturePyramidNetwork(list(config.in_channels), config.fpn_channels, LastLevelMaxPool())
        for layer in self.fpn.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
        self.rpn = RegionProposals(config)
        self.box_pooler = RoIPooler(config.strides, config.box_pool)
        self.mask_pooler = RoIPooler(config.strides, config.mask_pool)

    @property
    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages of heads, in the order in which they run."""

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn the backbone's maps into the five of the feature pyramid, in at least float32, fine to coarse."""
        self._check_maps(maps)
        return list(self.fpn({str(level): at_least_float32(x) for level, x in enumerate(maps)}).values())

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
        """Return the losses of a batch (HEADS.md 2.8, 2.10).

        Args:
            pyramid: Five maps of :meth:`pyramid`.
            sizes: (height, width) of the images without padding.
            targets: As for :meth:`forward`.
        """
        config = self.config
        objects = [target["boxes"].to(pyramid[0].dtype) for target in targets]
        padded = [self.padded_size(size) for size in sizes]
        output = self.rpn(pyramid)
        losses = self.rpn.loss(output, sizes, padded, objects)
        limits = torch.tensor(sizes, device=pyramid[0].device)
        count = config.rpn_post_nms_train or config.rpn_post_nms
        proposals = self.rpn.propose(output, limits, config.rpn_pre_nms_train, count)
        boxes = [proposal.boxes for proposal in proposals]
        stages = self.stages
        for number, stage in enumerate(stages, start=1):
            samples = [
                stage.boxes.sample(found, known, target["labels"])
                for found, known, target in zip(boxes, objects, targets, strict=True)
            ]
            rois = with_image_index([sample.boxes for sample in samples])
            logits, deltas = stage.boxes(self.box_pooler(pyramid, rois))
            own = stage.boxes.loss(logits, deltas, samples)
            if stage.masks is not None:
                own |= self._mask_loss(stage.masks, pyramid, samples, targets, padded)
            losses |= {name + stage.name: stage.boxes.weight * loss for name, loss in own.items()}
            if number < len(stages):
                boxes = _refined(stage.boxes, samples, logits, deltas, limits)
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
        if all(stage.masks is None for stage in self.stages):
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
        config = self.config
        proposals = self.rpn.propose(self.rpn(pyramid), sizes, config.rpn_pre_nms_test, config.rpn_post_nms)
        boxes = [proposal.boxes for proposal in proposals]
        counts = [len(b) for b in boxes]
        heads = [stage.boxes for stage in self.stages]
        votes: list[Tensor] = []
        for number, head in enumerate(heads, start=1):
            logits, deltas = head(self.box_pooler(pyramid, with_image_index(boxes)))
            votes.append(logits)
            parts = list(zip(boxes, logits.split(counts), deltas.split(counts), sizes, strict=True))
            if number < len(heads):
                boxes = [head.refine(*part) for part in parts]
        means = torch.stack(votes).mean(0).split(counts)
        return [
            heads[-1].detect(found, mean, deltas, size, scale, config)
            for (found, _, deltas, size), mean, scale in zip(parts, means, scales, strict=True)
        ]

    def detect_masks(
        self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the mask probabilities (D_i, 28, 28) of the labels of boxes (D_i, 4) in network pixels."""
        label = torch.cat(list(labels))
        pooled = self.mask_pooler(pyramid, with_image_index(boxes))
        rows = torch.arange(len(label), device=label.device)
        heads = [stage.masks for stage in self.stages if stage.masks is not None]
        mean = torch.stack([head(pooled)[rows, label].sigmoid() for head in heads]).mean(0)
        return mean.split([len(b) for b in boxes])

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


def _refined(
    head: BoxHead, samples: Sequence[RoISamples], logits: Tensor, deltas: Tensor, sizes: Tensor
) -> list[Tensor]:
    """Return what the next stage learns from: the sampled RoIs, moved, but not the objects that were added."""
    counts = [len(sample.boxes) for sample in samples]
    parts = zip(samples, logits.split(counts), deltas.split(counts), sizes, strict=True)
    return [
        head.refine(sample.boxes, votes, moves, size, sample.labels)[~sample.added]
        for sample, votes, moves, size in parts
    ]
