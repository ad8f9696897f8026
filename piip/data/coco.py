"""Detection data sets: images with boxes, labels and masks, prepared for the network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from piip.data.geometry import ImageMeta
from piip.data.images import ImageFileError, read_image
from piip.data.index import AnnotationIndex, read_index
from piip.data.layout import SplitSource
from piip.data.sampler import Key
from piip.data.settings import AugmentConfig, ImageConfig
from piip.data.transforms import (
    Sample,
    clip_boxes,
    evaluation_transform,
    normalise,
    seeded,
    training_transform,
)
from piip.errors import DataError

Target = dict[str, Any]
Item = tuple[Tensor, Target, ImageMeta]

MIN_SIDE = 32  # HEADS 9: smaller images are left out of training


class DetectionDataset(Dataset[Item]):
    """One split of a COCO or YOLO data set.

    An item is ``(image, target, meta)``: the image float32 ``(3, h, w)``, normalised RGB, not padded; the
    target a dict of ``boxes`` float32 ``(N, 4)`` xyxy in pixels of that image, ``labels`` int64 ``(N,)``
    from 0 to C - 1, ``image_id`` and, where asked for, ``masks`` uint8 ``(N, h, w)``.

    With ``augment`` it is a training set: images without a usable object or with a side below 32 pixels
    are left out (HEADS 9). Without, every image is there, in the order of the file. Crowd annotations give
    no target, but ``coco_dict`` has them for evaluation.

    Args:
        source: What ``find_dataset(folder).split(name)`` returns, or an index already read.
        image: Scale, resize method and normalisation.
        augment: Random changes of training images.
        masks: Whether targets have masks.
        classes: Names to keep, in the order of their labels; all, by sorted category id, when not given.
        keep_empty: Train on images without objects, too.
        seed: Seed of the augmentation, together with epoch and index.

    Raises:
        DataError: The annotations are damaged, no image is left, an unknown class is asked for, or masks
            are asked for and objects have none.
    """

    def __init__(
        self,
        source: SplitSource | AnnotationIndex,
        image: ImageConfig,
        augment: AugmentConfig | None = None,
        *,
        masks: bool = True,
        classes: Sequence[str] | None = None,
        keep_empty: bool = False,
        seed: int = 0,
    ) -> None:
        self.index = source if isinstance(source, AnnotationIndex) else read_index(source)
        self.image = image
        self.masks = masks
        self.seed = seed
        self.classes = tuple(classes) if classes is not None else self.index.classes
        chosen = self.index.positions(self.classes)
        self.category_ids = tuple(self.index.category_ids[position] for position in chosen)
        self._labels = _labels(self.index, chosen)
        self._usable = (self._labels >= 0) & ~self.index.crowd & _has_area(self.index)
        training = augment is not None
        self.indices = self._kept_images(keep_empty) if training else np.arange(len(self.index))
        if not len(self.indices):
            raise DataError(f"{self.index.source} has no image{' with objects to train on' * training}.")
        if masks:
            self.require_outlines(np.flatnonzero(self._usable))
        self._transform = training_transform(augment, image) if augment else evaluation_transform(image)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | Key) -> Item:
        """Return an item; a key (epoch, index) gives each epoch its own augmentation.

        Raises:
            ImageFileError: The image cannot be read or has another size than annotated.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        position = int(self.indices[index])
        sample = self._load(position)
        with seeded(self.seed, epoch, index):
            sample = self._transform(sample)
        pixels = normalise(sample["image"].as_subclass(Tensor), self.image)
        size = (pixels.shape[-2], pixels.shape[-1])
        image_id = int(self.index.image_ids[position])
        target = {name: value.as_subclass(Tensor) for name, value in sample.items() if name != "image"}
        target["image_id"] = image_id
        original = self.index.size(position)
        return pixels, target, ImageMeta.of(image_id, self.index.file_names[position], original, size)

    def read(self, index: int) -> tuple[Tensor, int]:
        """Return an image (3, H, W) uint8 as it is in its file, and its id.

        Raises:
            ImageFileError: The image cannot be read or has another size than annotated.
        """
        position = int(self.indices[index])
        return self._read(position), int(self.index.image_ids[position])

    @property
    def orientations(self) -> NDArray[np.int64]:
        """``(len,)``: 1 where the image is at least as wide as high; batches hold one kind (HEADS 9)."""
        sizes = self.index.sizes[self.indices]
        return (sizes[:, 1] >= sizes[:, 0]).astype(np.int64)

    @property
    def objects(self) -> NDArray[np.int64]:
        """Positions in the index of all objects of the chosen classes, crowds included."""
        return np.flatnonzero(self._labels >= 0)

    def require_outlines(self, objects: NDArray[np.int64]) -> None:
        """Refuse objects without an outline.

        Args:
            objects: Their positions in the index.

        Raises:
            DataError: There are some.
        """
        bare = [item for item in objects.tolist() if item not in self.index.outlines]
        if bare:
            image = int(np.searchsorted(self.index.starts, bare[0], side="right")) - 1
            raise DataError(
                f"{self.index.source}: {len(bare)} of {len(objects)} objects have no outline, the first in "
                f"{self.index.file_names[image]}; use a detector without masks (detector.masks false) or add "
                "outlines."
            )

    def coco_dict(self) -> dict[str, Any]:
        """Return the ground truth of this data set as a COCO dict, crowds included, for pycocotools.

        Annotations are numbered anew from 1, since pycocotools takes an id of 0 for "no match".
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for position in map(int, self.indices):
            height, width = self.index.size(position)
            image_id = int(self.index.image_ids[position])
            name = self.index.file_names[position]
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for item in map(int, self.index.objects(position)):
                if self._labels[item] >= 0:
                    entry = {"id": len(annotations) + 1, "image_id": image_id}
                    annotations.append(entry | self._coco_object(item, (height, width)))
        pairs = sorted(zip(self.category_ids, self.classes, strict=True))
        categories = [{"id": number, "name": name} for number, name in pairs]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def _coco_object(self, item: int, size: tuple[int, int]) -> dict[str, Any]:
        entry = {
            "category_id": self.category_ids[self._labels[item]],
            "bbox": self.index.boxes[item].tolist(),
            "area": float(self.index.areas[item]),
            "iscrowd": int(self.index.crowd[item]),
        }
        if item in self.index.outlines:
            entry["segmentation"] = self.index.outlines.to_coco(item, size)
        return entry

    def _read(self, position: int) -> Tensor:
        size = self.index.size(position)
        path = self.index.root / self.index.file_names[position]
        image = read_image(path)
        if (found := tuple(image.shape[-2:])) != size:
            raise ImageFileError(
                f"Image {path} is {found[1]} x {found[0]} pixels but {self.index.source} says "
                f"{size[1]} x {size[0]}; mend one of them (piip check-data lists all)."
            )
        return image

    def _load(self, position: int) -> Sample:
        """Return the unchanged image with its usable objects, boxes clipped to it."""
        image, size = self._read(position), self.index.size(position)
        objects = self.index.objects(position)
        objects = objects[self._usable[objects]]
        boxes = torch.from_numpy(self.index.boxes[objects]).to(torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        sample = {
            "image": tv_tensors.Image(image),
            "boxes": clip_boxes(boxes, size),
            "labels": torch.from_numpy(self._labels[objects]),
        }
        if self.masks:
            masks = self.index.outlines.masks(objects.tolist(), size)
            sample["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return sample

    def _kept_images(self, keep_empty: bool) -> NDArray[np.int64]:
        kept = self.index.sizes.min(1, initial=10**9) >= MIN_SIDE
        if not keep_empty:
            before = np.concatenate(([0], np.cumsum(self._usable)))
            kept &= np.diff(before[self.index.starts]) > 0
        return np.flatnonzero(kept)


def collate(batch: Sequence[Item]) -> tuple[list[Tensor], list[Target], list[ImageMeta]]:
    """Gather items into lists; images keep their own sizes, the detector pads them."""
    images, targets, metas = zip(*batch, strict=True)
    return list(images), list(targets), list(metas)


def _labels(index: AnnotationIndex, chosen: Sequence[int]) -> NDArray[np.int64]:
    """Return the contiguous label of every object, -1 where its class was not chosen."""
    table = np.full(len(index.category_ids), -1, np.int64)
    table[list(chosen)] = np.arange(len(chosen))
    return table[index.categories]


def _has_area(index: AnnotationIndex) -> NDArray[np.bool_]:
    """Tell which objects are at least one pixel wide and high and overlap their image (HEADS 9)."""
    sizes = index.sizes[np.repeat(np.arange(len(index)), np.diff(index.starts))]
    corner, extent = index.boxes[:, :2], index.boxes[:, 2:]
    overlap = np.minimum(corner + extent, sizes[:, ::-1]) - np.maximum(corner, 0)
    return (overlap > 0).all(1) & (extent >= 1).all(1) & (index.areas > 0)
