"""Data sets for semantic segmentation: images with a label per pixel, prepared for the network."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from piip.data.geometry import ImageMeta
from piip.data.images import ImageFileError, read_image
from piip.data.labels import IGNORED, LabelledSplit
from piip.data.resize import keep_ratio_size
from piip.data.sampler import Key
from piip.data.settings import AugmentConfig, ImageConfig
from piip.data.transforms import Augment, RandomCrop, Sample, normalise, prepare_image, seeded
from piip.errors import ConfigError

Item = tuple[Tensor, Tensor, ImageMeta]

_TRIES = 10
# Of images as numbers from 0 to 1: brightness by 32 of 255 grey levels, hue by 18 of 360 degrees.
_PHOTOMETRIC = {"brightness": (0.875, 1.125), "hue": (-0.05, 0.05), "p": 0.5}


class SegmentationDataset(Dataset[Item]):
    """One split of images with masks.

    An item is ``(image, labels, meta)``: the image float32 (3, h, w), normalised RGB; the labels int64. For
    training (``augment``), both are random crops of one size. For evaluation the image has its test size and the
    labels (H, W) that of the file, on which results are measured.

    Args:
        split: What ``find_masks(folder).split(name)`` returns.
        image: Scale, resize method and normalisation.
        augment: Random changes of training images; its policy must be ``crop``.
        seed: Seed of the augmentation, together with epoch and index.

    Raises:
        ConfigError: The policy is one for detection.
    """

    def __init__(
        self, split: LabelledSplit, image: ImageConfig, augment: AugmentConfig | None = None, seed: int = 0
    ) -> None:
        self.split = split
        self.image = image
        self.seed = seed
        self.classes = split.classes
        self._transform = training_transform(augment, image) if augment is not None else None

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, key: int | Key) -> Item:
        """Return an item; a key (epoch, index) gives each epoch its own augmentation.

        Raises:
            ImageFileError: An image or mask cannot be read, or they differ in size.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pixels, labels = self.read(index)
        original = (pixels.shape[-2], pixels.shape[-1])
        if self._transform is None:
            prepared = prepare_image(pixels, self.image)
        else:
            sample = {"image": tv_tensors.Image(pixels), "labels": tv_tensors.Mask(labels)}
            with seeded(self.seed, epoch, index):
                sample = self._transform(sample)
            labels = sample["labels"].as_subclass(Tensor)
            prepared = normalise(sample["image"].as_subclass(Tensor), self.image)
        size = (prepared.shape[-2], prepared.shape[-1])
        meta = ImageMeta.of(index, str(self.split.images[index]), original, size)
        return prepared, labels.to(torch.int64), meta

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, H, W) and its labels (H, W), both uint8 and at the size of the file.

        Raises:
            ImageFileError: An image or mask cannot be read, or they differ in size.
        """
        pixels = read_image(self.split.images[index])
        labels = torch.from_numpy(self.split.labels(index))
        if labels.shape != pixels.shape[-2:]:
            raise ImageFileError(
                f"{self.split.origin(index)} is {labels.shape[1]} x {labels.shape[0]} pixels but its image is "
                f"{pixels.shape[2]} x {pixels.shape[1]}; mend one of them."
            )
        return pixels, labels

    @property
    def groups(self) -> NDArray[np.int64]:
        """``(len,)`` zeros: crops have one size, any of them make a batch."""
        return np.zeros(len(self), np.int64)


def training_transform(augment: AugmentConfig, image: ImageConfig) -> Augment:
    """Return random resize, crop, flip and colours, as a transform of samples with ``image`` and ``labels``.

    Raises:
        ConfigError: The policy is one for detection, or has no crop.
    """
    if augment.policy != "crop" or augment.crop is None:
        raise ConfigError(
            "Segmenters are trained on crops of one size; set augment.policy to crop and augment.crop to its side."
        )
    steps: list[v2.Transform] = [
        RandomRatio(image, augment.ratios),
        VariedCrop(augment.crop, augment.largest_share),
        v2.RandomHorizontalFlip(augment.flip),
    ]
    if augment.photometric:
        steps.append(v2.RandomPhotometricDistort(**_PHOTOMETRIC))
    steps.append(PadTo(augment.crop, image.mean))
    return v2.Compose(steps)


class RandomRatio(v2.Transform):
    """Resize to the test scale times a random factor, the aspect ratio kept."""

    def __init__(self, image: ImageConfig, ratios: tuple[float, float]) -> None:
        super().__init__()
        self.image = image
        self.ratios = ratios

    def __call__(self, sample: Sample) -> Sample:
        """Resize image and labels."""
        low, high = self.ratios
        ratio = low + (high - low) * float(torch.rand(()))
        height, width = sample["image"].shape[-2:]
        size = list(keep_ratio_size(height, width, self.image.scaled(ratio).scale))
        resized = tvf.resize(sample["image"], size, antialias=False)
        labels = tvf.resize(sample["labels"][None], size, interpolation=v2.InterpolationMode.NEAREST)[0]
        return {"image": resized, "labels": tv_tensors.Mask(labels)}


class VariedCrop(RandomCrop):
    """Crop at a random place, again (up to ten times) while one class covers too much of it."""

    def __init__(self, side: int, largest_share: float) -> None:
        super().__init__(side, side)
        self.largest_share = largest_share

    def __call__(self, sample: Sample) -> Sample:
        """Crop image and labels."""
        for _ in range(_TRIES):
            params = self.make_params([sample["image"]])
            labels = tvf.crop(sample["labels"][None], **params)[0]
            if self._is_varied(labels.as_subclass(Tensor)):
                break
        return {"image": tvf.crop(sample["image"], **params), "labels": tv_tensors.Mask(labels)}

    def _is_varied(self, labels: Tensor) -> bool:
        counts = torch.bincount(labels[labels != IGNORED].to(torch.int64))
        return bool((counts > 0).sum() > 1) and float(counts.max() / counts.sum()) < self.largest_share


class PadTo(v2.Transform):
    """Fill smaller crops up at the bottom and the right: images with their mean, labels with no class."""

    def __init__(self, side: int, mean: Sequence[float]) -> None:
        super().__init__()
        self.side = side
        self.mean = [round(value) for value in mean]

    def __call__(self, sample: Sample) -> Sample:
        """Pad image and labels."""
        height, width = sample["image"].shape[-2:]
        padding = [0, 0, max(0, self.side - width), max(0, self.side - height)]
        if not any(padding):
            return sample
        labels = tvf.pad(sample["labels"][None], padding, fill=IGNORED)[0]
        return {"image": tvf.pad(sample["image"], padding, fill=self.mean), "labels": tv_tensors.Mask(labels)}


def collate(batch: Sequence[Item]) -> tuple[Tensor, Tensor, list[ImageMeta]]:
    """Stack crops into a batch: images (B, 3, h, w) and labels (B, h, w)."""
    images, labels, metas = zip(*batch, strict=True)
    return torch.stack(images), torch.stack(labels), list(metas)
