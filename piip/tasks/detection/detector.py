"""What all detectors share: checked input, padded batches, a backbone in any precision and a head in float32."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from piip.errors import ConfigError, DataError
from piip.tasks.detection.anchors import Size
from piip.tasks.detection.config import DetectorConfig
from piip.tasks.detection.result import Instances
from piip.tasks.detection.targets import Target, check_images, check_targets

if TYPE_CHECKING:
    from piip.data.geometry import ImageMeta


class Detector(nn.Module, ABC):
    """A detector on any backbone.

    The backbone may run in bfloat16 under autocast; everything after it always runs in float32, as in the original
    (or in float64, after ``double()``).

    Args:
        config: What to detect and how.
        backbone: Maps a batch (B, 3, H, W) to maps (B, C_i, H_i, W_i), fine to coarse, with the config's channels
            and strides.

    Attributes:
        config_class: The class of its descriptions.
    """

    config_class: ClassVar[type[DetectorConfig]]

    def __init__(self, config: DetectorConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        metas: "Sequence[ImageMeta] | None" = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Compute the losses where targets are given, else detect.

        Args:
            images: Normalised images (3, h, w), of any sizes.
            targets: For each image ``boxes`` float32 (N, 4) xyxy in its pixels, ``labels`` int64 (N,) and, for
                masks, ``masks`` uint8 (N, h, w); N may be 0.
            metas: How the images relate to their files; without them the images are the originals.

        Returns:
            The parts of the loss by name, to be summed; or the detections of each image in pixels of its original.

        Raises:
            DataError: An image or a target is damaged, or a loss is not finite.
            ConfigError: The backbone's maps are not those of the config.
        """
        names = [f"image {i}" for i in range(len(images))]
        if metas is not None:
            names = [meta.file_name or name for meta, name in zip(metas, names, strict=True)]
        check_images(images, names)
        if targets is not None:
            check_targets(self.config, targets, images, names)
        pyramid = self.features(images)
        with torch.autocast(images[0].device.type, enabled=False):
            sizes = [_size(image) for image in images]
            if targets is None:
                return self.detect(pyramid, sizes, metas)
            losses = self.losses(pyramid, sizes, targets)
            _check_finite(losses)
            return losses

    def features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps, in at least float32, that the head reads of normalised images (3, h, w)."""
        maps = self.backbone(self.batch(images))
        with torch.autocast(images[0].device.type, enabled=False):
            return self.pyramid(maps)

    def padded_size(self, size: Size) -> Size:
        """Return the size (height, width) of an image after its own padding."""
        divisor = self.config.pad_divisor or 1
        height, width = (math.ceil(side / divisor) * divisor for side in size)
        return height, width

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Join images of any sizes to (B, 3, H, W), each at the top left, 0 elsewhere."""
        height, width = self.batch_size([_size(image) for image in images])
        return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])

    def batch_size(self, sizes: Sequence[Size]) -> Size:
        """Return the size (height, width) of a batch of images of these sizes."""
        height, width = (max(sides) for sides in zip(*map(self.padded_size, sizes), strict=True))
        return height, width

    @abstractmethod
    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Turn the backbone's maps into those that the head reads, in at least float32, fine to coarse."""

    @abstractmethod
    def losses(
        self, pyramid: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Args:
            pyramid: Maps of :meth:`pyramid`.
            sizes: (height, width) of the images without padding.
            targets: As for :meth:`forward`.
        """

    @abstractmethod
    def detect(
        self, pyramid: Sequence[Tensor], sizes: Sequence[Size], metas: "Sequence[ImageMeta] | None" = None
    ) -> list[Instances]:
        """Return the detections of a batch.

        Args:
            pyramid: Maps of :meth:`pyramid`.
            sizes: (height, width) of the images without padding.
            metas: As for :meth:`forward`.
        """

    def fold(self) -> None:
        """Merge neighbouring linear operations for inference, where there are some."""

    def _check_maps(self, maps: Sequence[Tensor]) -> None:
        channels = tuple(x.shape[1] for x in maps)
        if channels != self.config.in_channels:
            raise ConfigError(
                f"The backbone returned maps with {channels} channels, but in_channels is "
                f"{self.config.in_channels}; make them equal."
            )


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]


def _check_finite(losses: dict[str, Tensor]) -> None:
    """Refuse losses from which no step can be made, with one synchronisation in the good case."""
    values = torch.stack(list(losses.values())).detach()
    if values.isfinite().all():
        return
    name, value = next((n, v) for n, v in zip(losses, values.tolist(), strict=True) if not math.isfinite(v))
    raise DataError(
        f"{name} is {value}: the training has diverged; lower the learning rate or clip gradients."
    )
