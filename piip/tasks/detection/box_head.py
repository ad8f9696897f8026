"""The box head: what each proposal shows and where exactly it lies (HEADS.md 2.6, 2.8)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from piip.tasks.detection.boxes import BoxCoder, clip
from piip.tasks.detection.config import BoxStage, TwoStageConfig
from piip.tasks.detection.matching import Matcher, Sampler
from piip.tasks.detection.suppression import suppress


class RoISamples(NamedTuple):
    """RoIs of one image that train: the objects first, then the background."""

    boxes: Tensor  # (N, 4)
    labels: Tensor  # (N,) 0..C-1, background C
    objects: Tensor  # (P,) index of the object of the first P
    targets: Tensor  # (P, 4) box of that object
    added: Tensor  # (N,) bool: an object itself, which was no proposal


class Scored(NamedTuple):
    """Detections of one image, best first."""

    boxes: Tensor  # (D, 4)
    scores: Tensor  # (D,)
    labels: Tensor  # (D,)


class BoxHead(nn.Module):
    """Classifies pooled RoIs into C classes and background (the LAST logit), with a box for every class or for all.

    Args:
        config: The detector.
        stage: What this head has of its own.
    """

    def __init__(self, config: TwoStageConfig, stage: BoxStage) -> None:
        super().__init__()
        self.num_classes = config.num_classes
        self.beta = config.box_beta or 0.0
        self.weight = stage.weight
        self.coder = BoxCoder(stage.stds)
        self.matcher = Matcher(stage.iou, stage.iou, stage.iou, config.box_low_quality)
        self.sampler = Sampler(config.box_samples, config.box_positive_fraction)
        width = config.representation_size
        self.layers = TwoMLPHead(config.fpn_channels * config.box_pool**2, width)
        self.cls_score = nn.Linear(width, config.num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * (1 if config.box_class_agnostic else config.num_classes))
        for layer in (self.layers.fc6, self.layers.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Map pooled features (N, C_fpn, 7, 7) to logits (N, C + 1) and offsets (N, C or 1, 4)."""
        hidden = self.layers(pooled)
        return self.cls_score(hidden), self.bbox_pred(hidden).unflatten(1, (-1, 4))

    @torch.no_grad()
    def sample(self, proposals: Tensor, objects: Tensor, labels: Tensor) -> RoISamples:
        """Choose the RoIs of one image that train; its objects are proposals as well.

        Args:
            proposals: Boxes (N, 4).
            objects: Boxes (M, 4) of the objects.
            labels: Their classes (M,).
        """
        own = torch.arange(len(objects), device=objects.device)
        matched = torch.cat([own, self.matcher(proposals, objects)])
        boxes = torch.cat([objects, proposals])
        positive, negative = self.sampler(matched)
        index = matched[positive]
        background = torch.full_like(negative, self.num_classes)
        chosen = torch.cat([positive, negative])
        return RoISamples(
            boxes[chosen],
            torch.cat([labels[index], background]),
            index,
            objects[index],
            chosen < len(objects),
        )

    def loss(self, logits: Tensor, deltas: Tensor, samples: Sequence[RoISamples]) -> dict[str, Tensor]:
        """Return ``loss_cls`` and ``loss_box`` for the outputs of all sampled RoIs of a batch."""
        labels = torch.cat([s.labels for s in samples])
        boxes = torch.cat([s.boxes for s in samples])
        positive = (labels < self.num_classes).nonzero()[:, 0]
        targets = self.coder.encode(boxes[positive], torch.cat([s.targets for s in samples]))
        # The sum over no rows at all still reaches the parameters, with gradient 0 (distributed training).
        own = of_class(deltas, positive, labels[positive])
        distance = F.smooth_l1_loss(own, targets, beta=self.beta, reduction="sum")
        return {
            "loss_cls": F.cross_entropy(logits, labels, reduction="sum") / max(len(labels), 1),
            "loss_box": distance / max(len(labels), 1),
        }

    @torch.no_grad()
    def refine(
        self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Move the RoIs of one image to where this head sees their objects: the RoIs of the next stage.

        Args:
            boxes: The RoIs (N, 4).
            logits: (N, C + 1); where each class has its box, the best class decides.
            deltas: (N, C or 1, 4).
            size: Height and width (2,) of the image without padding.
            labels: True classes (N,), background C, which decide where they are known.
        """
        classes = logits[:, :-1].argmax(1)
        if labels is not None:
            classes = torch.where(labels < self.num_classes, labels, classes)
        rows = torch.arange(len(boxes), device=boxes.device)
        return clip(self.coder.decode(boxes, of_class(deltas, rows, classes)), size)

    @torch.no_grad()
    def detect(
        self,
        boxes: Tensor,
        logits: Tensor,
        deltas: Tensor,
        size: Tensor,
        scale: Tensor,
        config: TwoStageConfig,
    ) -> Scored:
        """Turn the outputs for the RoIs of one image into its detections.

        Args:
            boxes: The RoIs (N, 4).
            logits: (N, C + 1).
            deltas: (N, C or 1, 4).
            size: Height and width (2,) of the image without padding.
            scale: ``(sx, sy, sx, sy)`` by which the image was resized; boxes are divided by it first.
            config: Threshold and suppression, which may differ from prediction to prediction.

        Returns:
            Detections in pixels of the original image.
        """
        decoded = clip(self.coder.decode(boxes[:, None], deltas), size) / scale
        probabilities = logits.softmax(-1)[:, :-1]
        row, label = (probabilities > config.score_threshold).nonzero(as_tuple=True)
        candidates, scores = of_class(decoded, row, label), probabilities[row, label]
        kept, scores = suppress(candidates, scores, label, config)
        return Scored(candidates[kept], scores, label[kept])


def of_class(values: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """Return ``values[row, label]`` (K, 4) of each row and label (K,); (N, 1, 4) has the same for all classes."""
    return values[rows, labels.clamp(max=values.shape[1] - 1)]
