"""Data sets for image classification: one class for an image, prepared for the network by timm's transforms."""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from piip.data.geometry import ImageMeta
from piip.data.images import SUFFIXES, open_picture, read_image
from piip.data.sampler import Key
from piip.data.settings import AugmentConfig, ImageConfig
from piip.data.transforms import seeded
from piip.errors import ConfigError, DataError

Item = tuple[Tensor, int, ImageMeta]

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_FILE_COLUMNS = ("file", "path", "image", "filename", "file_name")
_LABEL_COLUMNS = ("label", "class", "category", "target")


@dataclass(frozen=True)
class ClassSplit:
    """One split: images and their classes.

    Attributes:
        source: The folder or table, for messages.
        images: Image files.
        labels: Class number of every image.
        classes: Class names in label order.
    """

    source: Path
    images: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def has_classes(folder: Path) -> bool:
    """Return whether a folder has a training split of folders with images, or a table of it."""
    names = _SPLITS["train"]
    if any((folder / f"{name}.csv").is_file() for name in names):
        return True
    files = (path for name in names for path in (folder / name).glob("*/*"))
    return any(path.suffix.lower() in SUFFIXES for path in files)


def find_classes(folder: str | Path, split: str, classes: Sequence[str] = ()) -> ClassSplit:
    """Read one split of a data set: a folder per class, or a table of files and classes.

    Args:
        folder: Holds train/CLASS/*.jpg and val/CLASS/*.jpg, or train.csv and val.csv with a column of files (file,
            path, image, filename) relative to it and one of classes (label, class, category).
        split: ``train``, ``val`` or ``test``.
        classes: Class names in label order; all, sorted, when empty.

    Raises:
        DataError: There is no such split, or it has no image or an unknown class.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"The data set {folder} does not exist; give a folder with train and val.")
    for name in _SPLITS.get(split, (split,)):
        if (folder / f"{name}.csv").is_file():
            return _labelled(folder / f"{name}.csv", _read_table(folder / f"{name}.csv"), classes)
        if (folder / name).is_dir():
            return _labelled(folder / name, _read_folders(folder / name), classes)
    raise DataError(f"{folder} has no {split} split; looked for {split}.csv and the folder {split}/CLASS/.")


def _read_folders(root: Path) -> list[tuple[Path, str]]:
    inside = sorted(path for path in root.iterdir() if path.is_dir())
    return [
        (path, folder.name)
        for folder in inside
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]


def _read_table(path: Path) -> list[tuple[Path, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error}).") from error
    named = [
        next((c for c in columns if c.strip().lower() in known), None)
        for known in (_FILE_COLUMNS, _LABEL_COLUMNS)
    ]
    if None in named:
        raise DataError(
            f"{path} has the columns {', '.join(columns) or 'none'}; it needs one of {', '.join(_FILE_COLUMNS)} "
            f"and one of {', '.join(_LABEL_COLUMNS)}."
        )
    for number, row in enumerate(rows, start=2):
        if not row[named[0]] or not row[named[1]]:
            raise DataError(f"{path}, line {number}: the file or the class is missing.")
    return [(path.parent / row[named[0]].strip(), row[named[1]].strip()) for row in rows]


def _labelled(source: Path, pairs: list[tuple[Path, str]], classes: Sequence[str]) -> ClassSplit:
    found = sorted({name for _, name in pairs})
    names = tuple(classes) or tuple(found)
    unknown = [name for name in found if name not in names]
    if not pairs:
        raise DataError(f"{source} has no images.")
    if unknown:
        raise DataError(f"{source} has the class {unknown[0]!r}, which is none of {', '.join(names[:8])}.")
    if len(names) < 2:
        raise DataError(f"{source} has one class, {names[0]!r}; there is nothing to tell apart.")
    labels = {name: number for number, name in enumerate(names)}
    return ClassSplit(source, tuple(path for path, _ in pairs), tuple(labels[n] for _, n in pairs), names)


class ClassificationDataset(Dataset[Item]):
    """One split of images with classes.

    An item is ``(image, label, meta)``: the image float32 (3, side, side), normalised RGB.

    Args:
        split: What `find_classes` returns.
        image: Side (``scale``), kept share of the middle (``crop_ratio``) and normalisation.
        augment: Random changes of training images.
        seed: Seed of the augmentation, together with epoch and index.
    """

    def __init__(
        self, split: ClassSplit, image: ImageConfig, augment: AugmentConfig | None = None, seed: int = 0
    ) -> None:
        self.split = split
        self.classes = split.classes
        self.seed = seed
        self._transform = timm_transform(image, augment)

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, key: int | Key) -> Item:
        """Return an item; a key (epoch, index) gives each epoch its own augmentation.

        Raises:
            ImageFileError: The image cannot be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        path = self.split.images[index]
        picture = open_picture(path)
        with seeded(self.seed, epoch, index):
            _seed_other_libraries()
            prepared = self._transform(picture)
        original = (picture.height, picture.width)
        meta = ImageMeta.of(index, str(path), original, (prepared.shape[-2], prepared.shape[-1]))
        return prepared, self.split.labels[index], meta

    def read(self, index: int) -> tuple[Tensor, int]:
        """Return an image (3, H, W) uint8 as it is in its file, and its class number.

        Raises:
            ImageFileError: The image cannot be read.
        """
        return read_image(self.split.images[index]), self.split.labels[index]


def prepare_picture(pixels: Tensor, config: ImageConfig) -> Tensor:
    """Return an image (3, h, w) uint8 as a classifier reads it at test time, (3, side, side) float32.

    Raises:
        ConfigError: The scale is no square.
    """
    prepared: Tensor = timm_transform(config)(to_pil_image(pixels))
    return prepared


def timm_transform(image: ImageConfig, augment: AugmentConfig | None = None) -> Any:
    """Return timm's preparation of a PIL image, bicubic as the released classifiers were trained (SPEC 16.3).

    Args:
        image: ``scale`` is the side of the square that the network reads.
        augment: With it: random resized crop, flip and the named policies; without: resize and centre crop.

    Raises:
        ConfigError: ``scale`` is no square.
    """
    from timm.data import create_transform

    if image.scale[0] != image.scale[1]:
        raise ConfigError(f"image.scale is {list(image.scale)}; classifiers read squares, give [S, S].")
    shared = {
        "input_size": (3, image.scale[0], image.scale[0]),
        "interpolation": "bicubic",
        "mean": tuple(value / 255 for value in image.mean),
        "std": tuple(value / 255 for value in image.std),
    }
    if augment is None:
        return create_transform(**shared, crop_pct=image.crop_ratio)
    return create_transform(
        **shared,
        is_training=True,
        hflip=augment.flip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.auto_augment or None,
        re_prob=augment.random_erasing,
    )


def _seed_other_libraries() -> None:
    """Give Python's and numpy's generators, which timm draws from, the seed that torch has."""
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)


def collate(batch: Sequence[Item]) -> tuple[Tensor, Tensor, list[ImageMeta]]:
    """Stack items into a batch: images (B, 3, side, side) and labels (B)."""
    images, labels, metas = zip(*batch, strict=True)
    return torch.stack(images), torch.tensor(labels), list(metas)
