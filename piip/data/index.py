"""The annotations of a detection data set in flat arrays, whatever files they came from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.data.images import read_size
from piip.data.layout import SplitSource
from piip.data.outlines import Outlines, usable_polygons
from piip.data.yolo import read_yolo
from piip.errors import DataError, nearest


@dataclass(frozen=True, eq=False)
class AnnotationIndex:
    """M images and A objects, the objects sorted by image.

    Arrays instead of dicts keep COCO's 860 thousand objects small and shared between loader workers.

    Attributes:
        source: File the annotations came from, for messages.
        root: Folder of the images.
        image_ids: ``(M,)`` identities.
        file_names: M paths relative to ``root``.
        sizes: ``(M, 2)`` height and width in pixels.
        category_ids: Sorted category ids, as sparse as they are in the file.
        classes: Their names.
        starts: ``(M + 1,)``: image m owns objects ``starts[m]`` to ``starts[m + 1]``.
        boxes: ``(A, 4)`` x, y, width, height in pixels.
        categories: ``(A,)`` positions in ``category_ids``.
        areas: ``(A,)`` in square pixels.
        crowd: ``(A,)`` True where the annotation covers a group.
        outlines: Segmentations of the A objects.
    """

    source: Path
    root: Path
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    category_ids: tuple[int, ...]
    classes: tuple[str, ...]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    categories: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, image: int) -> NDArray[np.int64]:
        """Return the object indices of the image at position ``image``."""
        return np.arange(self.starts[image], self.starts[image + 1])

    def size(self, image: int) -> tuple[int, int]:
        """Return height and width of the image at position ``image``."""
        return int(self.sizes[image, 0]), int(self.sizes[image, 1])

    def positions(self, classes: Sequence[str]) -> list[int]:
        """Return the category positions of class names.

        Raises:
            DataError: A name is unknown.
        """
        for name in classes:
            if name not in self.classes:
                raise DataError(f"{self.source} has no class {name!r}. {nearest(name, self.classes)}")
        return [self.classes.index(name) for name in classes]


def read_index(source: SplitSource) -> AnnotationIndex:
    """Read the annotations of one split.

    Raises:
        DataError: They are damaged or contradict themselves; the message names the first offence.
    """
    return build_index(read_raw(source), source.annotations, source.images)


def read_raw(source: SplitSource) -> dict[str, Any]:
    """Return the content of a COCO json, or a YOLO split in the same form.

    Raises:
        DataError: The json is not readable or lacks a part.
    """
    if source.kind == "yolo":
        return read_yolo(source)
    path = source.annotations
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"The annotations {path} do not exist.") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not a readable json ({error}).") from error
    if isinstance(raw, dict):
        raw.setdefault("annotations", [])  # test sets come without
    parts = ("images", "annotations", "categories")
    missing = [key for key in parts if not isinstance(raw, dict) or not _is_table(raw.get(key))]
    if missing:
        raise DataError(f"{path} is no COCO annotation file: it lacks lists of {' and '.join(missing)}.")
    return raw


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def build_index(raw: dict[str, Any], source: Path, root: Path) -> AnnotationIndex:
    """Build an index from the content of a COCO json.

    Args:
        raw: ``images``, ``annotations`` and ``categories``.
        source: File name for messages.
        root: Folder of the images.

    Raises:
        DataError: An entry lacks a key, refers to an unknown image or category, or is no number.
    """
    try:
        categories = sorted((_id(entry["id"]), str(entry["name"])) for entry in raw["categories"])
        image_ids = np.array([_id(image["id"]) for image in raw["images"]], np.int64)
        names = tuple(str(image["file_name"]) for image in raw["images"])
        sizes = np.array([_image_size(image, root) for image in raw["images"]], np.int64).reshape(-1, 2)
        order, image_of = _sort_by_image(raw["annotations"], image_ids, source)
        objects = [raw["annotations"][position] for position in order]
        outlines, boxes = _shapes(objects, sizes[image_of], source)
        return AnnotationIndex(
            source=source,
            root=root,
            image_ids=image_ids,
            file_names=names,
            sizes=sizes,
            category_ids=tuple(number for number, _ in categories),
            classes=tuple(name for _, name in categories),
            starts=np.searchsorted(image_of, np.arange(len(names) + 1)),
            boxes=boxes,
            categories=_category_positions(objects, [number for number, _ in categories], source),
            areas=_areas(objects, boxes),
            crowd=np.array([bool(entry.get("iscrowd", 0)) for entry in objects], bool),
            outlines=outlines,
        )
    except KeyError as error:
        raise DataError(f"{source}: an entry lacks the key {error}.") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{source} does not follow the COCO format ({error}).") from error


def as_id(value: Any) -> int | None:
    """Return a whole number of 64 bits, also one written as text, or None if it is something else."""
    written = isinstance(value, str) and value.strip().removeprefix("-").isdecimal()
    if not written and (isinstance(value, bool) or not isinstance(value, int)):
        return None
    number = int(value)
    return number if abs(number) < 2**63 else None


def _id(value: Any) -> int:
    number = as_id(value)
    if number is None:
        raise ValueError(f"the id {value!r} is no whole number")
    return number


def _image_size(image: dict[str, Any], root: Path) -> tuple[int, int]:
    if "height" in image and "width" in image:
        return int(image["height"]), int(image["width"])
    return read_size(root / image["file_name"])


def _sort_by_image(
    annotations: list[dict[str, Any]], image_ids: NDArray[np.int64], source: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the annotations by image, and the image position of each in that order."""
    positions = {int(image_id): position for position, image_id in enumerate(image_ids)}
    if len(positions) < len(image_ids):
        values, counts = np.unique(image_ids, return_counts=True)
        raise DataError(f"{source}: the image id {values[counts > 1][0]} is used {counts.max()} times.")
    wanted = [_id(entry["image_id"]) for entry in annotations]
    unknown = [image_id for image_id in wanted if image_id not in positions]
    if unknown:
        raise DataError(
            f"{source}: {len(unknown)} annotations name images it lacks, the first is {unknown[0]}."
        )
    image_of = np.array([positions[image_id] for image_id in wanted], np.int64)
    order = np.argsort(image_of, kind="stable")
    return order, image_of[order]


def _category_positions(
    objects: list[dict[str, Any]], category_ids: list[int], source: Path
) -> NDArray[np.int64]:
    positions = {number: position for position, number in enumerate(category_ids)}
    if len(positions) < len(category_ids):
        raise DataError(f"{source}: a category id is used twice in {category_ids}.")
    wanted = [_id(entry["category_id"]) for entry in objects]
    unknown = [number for number in wanted if number not in positions]
    if unknown:
        raise DataError(
            f"{source}: {len(unknown)} annotations have categories it lacks, the first is {unknown[0]}."
        )
    return np.array([positions[number] for number in wanted], np.int64)


def _shapes(
    objects: list[dict[str, Any]], sizes: NDArray[np.int64], source: Path
) -> tuple[Outlines, NDArray[np.float64]]:
    """Return outlines and ``(A, 4)`` boxes; a missing box is that of the outline."""
    pairs = [(int(height), int(width)) for height, width in sizes]
    try:
        outlines = Outlines.build((entry.get("segmentation") for entry in objects), pairs)
    except DataError as error:
        raise DataError(f"{source}: {error}.") from error
    boxes = [entry.get("bbox") or _hull(entry) for entry in objects]
    table = np.array(boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(table).all():
        bad = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise DataError(f"{source}: annotation {objects[bad].get('id')} has the box {boxes[bad]}.")
    return outlines, table


def _hull(entry: dict[str, Any]) -> list[float]:
    """Return the x, y, width, height of an annotation's polygons."""
    segmentation = entry.get("segmentation")
    polygons = usable_polygons(segmentation) if isinstance(segmentation, list) else []
    if not polygons:
        raise KeyError("bbox")
    points = np.concatenate(polygons).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return [*low, *(high - low)]


def _areas(objects: list[dict[str, Any]], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the annotated areas, or those of the boxes where there is none."""
    given = np.array([entry.get("area") for entry in objects], np.float64)  # None becomes NaN
    return np.where(np.isnan(given), boxes[:, 2] * boxes[:, 3], given)
