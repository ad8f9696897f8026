"""UperNet on a backbone with four maps; the heads are those of transformers (HEADS.md sections 3 and 6)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.errors import DataError, require
from piip.ops import at_least_float32, in_float32
from piip.tasks.segmentation.config import SegmenterConfig
from piip.tasks.segmentation.inference import Size, resize_logits, slide

AUXILIARY_LEVEL = 2


class Segmenter(nn.Module):
    """A backbone and UperNet.

    Args:
        config: The heads.
        backbone: Returns four maps, fine to coarse, of an image (B, 3, H, W).

    Raises:
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, config: SegmenterConfig, backbone: nn.Module) -> None:
        super().__init__()
        require("transformers", "segment", "Semantic segmentation")
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        self.config = config
        self.backbone = backbone
        described = _described(config)
        self.head: Any = UperNetHead(described, list(config.in_channels))
        self.auxiliary: Any = None
        if config.auxiliary:
            self.auxiliary = UperNetFCNHead(described, list(config.in_channels), AUXILIARY_LEVEL)
        for head in filter(None, (self.head, self.auxiliary)):
            _initialise(head, config.dropout)

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Return the losses of labelled images, or the logits of images.

        Args:
            image: Normalised RGB, (B, 3, H, W).
            labels: (B, H, W) with whole numbers; ``ignore_index`` has no class.

        Returns:
            With labels: the parts of the loss by their names, weighted. Without: logits (B, classes, H, W).

        Raises:
            DataError: Labels are no whole numbers, have another size than the image, or no class has their value.
        """
        if labels is None:
            return self.segment(image)
        self._check_labels(image, labels)
        maps = self.backbone(image)
        with in_float32(image.device):
            maps = [x.to(self.head_dtype) for x in maps]
            losses = {"loss_seg": self._loss(self.head(maps), labels)}
            if self.auxiliary is not None:
                losses["loss_aux"] = self.config.auxiliary_weight * self._loss(self.auxiliary(maps), labels)
        return losses

    @property
    def head_dtype(self) -> torch.dtype:
        """Type of the heads' weights: float32, whatever autocast does to the backbone."""
        weight: Tensor = self.head.classifier.weight
        return weight.dtype

    def segment(self, image: Tensor, size: Size | None = None) -> Tensor:
        """Return the logits of images (B, 3, H, W) at their own or another size (B, classes, *size).

        How is the description's: in windows or at once.
        """
        if self.config.inference == "whole":
            logits = self._window(image)
        else:
            logits = slide(self._window, image, self.config.crop_size, self.config.stride)
        return resize_logits(logits, size or (image.shape[-2], image.shape[-1]))

    def _window(self, image: Tensor) -> Tensor:
        """Return the logits of an image that is read at once, at its size and in at least float32."""
        maps = self.backbone(image)
        with in_float32(image.device):
            logits = at_least_float32(self.head([x.to(self.head_dtype) for x in maps]))
        return resize_logits(logits, (image.shape[-2], image.shape[-1]))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy; pixels without a class add nothing, but count in the mean (HEADS.md 3)."""
        resized = resize_logits(at_least_float32(logits), (labels.shape[-2], labels.shape[-1]))
        summed = F.cross_entropy(resized, labels, ignore_index=self.config.ignore_index, reduction="sum")
        return summed / labels.numel()

    def _check_labels(self, image: Tensor, labels: Tensor) -> None:
        if labels.dtype != torch.int64 or labels.shape != (len(image), *image.shape[-2:]):
            raise DataError(
                f"Labels of images {tuple(image.shape)} are int64 of shape {(len(image), *image.shape[-2:])}, got "
                f"{labels.dtype} of shape {tuple(labels.shape)}."
            )
        wrong = (labels != self.config.ignore_index) & ((labels < 0) | (labels >= len(self.config.classes)))
        if wrong.any():
            raise DataError(
                f"A pixel has the label {int(labels[wrong][0])}, but labels go from 0 to "
                f"{len(self.config.classes) - 1}; {self.config.ignore_index} means no class."
            )


class _Classifier(nn.Conv2d):
    """The last convolution of a head, whose input loses whole channels in training."""

    dropout: float = 0.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout2d(input, self.dropout, self.training))


def _described(config: SegmenterConfig) -> Any:
    """Return the settings under transformers' names."""
    from transformers import UperNetConfig

    return UperNetConfig(
        hidden_size=config.channels,
        pool_scales=config.pool_scales,
        auxiliary_channels=config.channels,
        num_labels=len(config.classes),  # type: ignore[call-arg]
    )


def _initialise(head: Any, dropout: float) -> None:
    """Initialise as the original does (HEADS.md section 3), and put the dropout before the classifier."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    head.classifier.__class__ = _Classifier
    head.classifier.dropout = dropout
    nn.init.normal_(head.classifier.weight, std=0.01)
    nn.init.zeros_(head.classifier.bias)
