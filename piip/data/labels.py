"""Where the labels of pixels come from: mask files, or the outlines of objects drawn over each other."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piip.data.images import ImageFileError
from piip.data.index import AnnotationIndex, read_index
from piip.data.layout import SplitSource
from piip.errors import DataError, require

IGNORED = 255
"""Label of pixels without a class, whatever the files call them; they neither train nor count."""
BACKGROUND = "background"
"""The first class where the labels are outlines of objects."""


@dataclass(frozen=True)
class LabelledSplit(ABC):
    """One split of images with a label for every pixel.

    Attributes:
        source: The folder or file, for messages.
        images: Image files.
        classes: Class names in label order.
    """

    source: Path
    images: tuple[Path, ...]
    classes: tuple[str, ...]

    @abstractmethod
    def labels(self, index: int) -> NDArray[np.uint8]:
        """Return the labels (H, W) of an image.

        Raises:
            ImageFileError: They cannot be read.
        """

    @abstractmethod
    def origin(self, index: int) -> str:
        """Return where an image's labels come from, for messages."""


@dataclass(frozen=True)
class MaskSplit(LabelledSplit):
    """Labels in image files.

    Attributes:
        masks: The file of every image: one number per pixel.
        table: (65536,) the label of every number in a file; `IGNORED` = no class.
    """

    masks: tuple[Path, ...]
    table: NDArray[np.uint8] = field(repr=False)

    def labels(self, index: int) -> NDArray[np.uint8]:
        """Return the labels (H, W) of an image.

        Raises:
            ImageFileError: The mask is missing, damaged, or a picture in colours instead of one label per pixel.
        """
        path = self.masks[index]
        try:
            with Image.open(path) as file:
                values = np.asarray(file)
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageFileError(f"Mask {path} cannot be read ({error}); replace the file.") from error
        if values.ndim != 2:
            raise ImageFileError(
                f"Mask {path} has {values.shape[-1]} channels; save masks with one number per pixel, the class."
            )
        return self.table[values.astype(np.int64).clip(0, len(self.table) - 1)]

    def origin(self, index: int) -> str:
        """Return the mask's file."""
        return f"Mask {self.masks[index]}"


@dataclass(frozen=True)
class OutlineSplit(LabelledSplit):
    """Labels drawn from the outlines of objects, the smaller ones over the larger; what is no object is background.

    Attributes:
        index: The objects.
        by_category: Label of every category position; 0 = left out.
    """

    index: AnnotationIndex = field(repr=False)
    by_category: tuple[int, ...]

    def labels(self, index: int) -> NDArray[np.uint8]:
        """Return the labels (H, W) of an image."""
        draw = require("pycocotools.mask", "detect", "Drawing outlines")
        size = self.index.size(index)
        labels = np.zeros(size, np.uint8)
        objects = self.index.objects(index)
        largest_first = objects[np.argsort(-self.index.areas[objects], kind="stable")].tolist()
        for label, group in groupby(
            largest_first, key=lambda item: self.by_category[self.index.categories[item]]
        ):
            if label:
                outlines = [self.index.outlines.run_length(item, size) for item in group]
                labels[draw.decode(draw.merge(outlines)).astype(bool)] = label
        return labels

    def origin(self, index: int) -> str:
        """Return the annotations' file and the image's name in it."""
        return f"{self.source}: {self.index.file_names[index]}"


def outline_split(source: SplitSource, classes: Sequence[str] = ()) -> OutlineSplit:
    """Read the outlines of one split of a detection data set as labels.

    Args:
        source: The split.
        classes: Class names to keep, the background among them or not; all when empty.

    Raises:
        DataError: An object has no outline, a class is unknown, or the annotations cannot be read.
    """
    index = read_index(source)
    names = tuple(name for name in classes if name != BACKGROUND) or index.classes
    by_category = [0] * len(index.classes)
    for label, position in enumerate(index.positions(names), start=1):
        by_category[position] = label
    for item, category in enumerate(index.categories.tolist()):
        if by_category[category] and item not in index.outlines:
            image = int(np.searchsorted(index.starts, item, side="right")) - 1
            raise DataError(
                f"{index.source} has objects without an outline, the first in {index.file_names[image]}; labels of "
                "pixels need polygons or masks."
            )
    images = tuple(index.root / name for name in index.file_names)
    return OutlineSplit(index.source, images, (BACKGROUND, *names), index, tuple(by_category))
