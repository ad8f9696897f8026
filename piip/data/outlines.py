"""Outlines of many objects, kept small: polygons in flat arrays, run-length masks as bytes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.errors import DataError, require

FARTHEST = 1e6  # pixels; pycocotools walks along every edge
MIN_COORDINATES = 6  # with 4 numbers pycocotools would take a polygon for a box


class Outlines:
    """The segmentations of the objects of a data set, addressed by object index.

    A set of masks is rasterised only when asked for; polygons keep their full precision, since pycocotools
    rounds at fifths of a pixel.
    """

    def __init__(self) -> None:
        self._points: NDArray[np.float64] = np.empty(0)
        self._point_ends: NDArray[np.int64] = np.zeros(1, np.int64)
        self._polygon_ends: NDArray[np.int64] = np.zeros(1, np.int64)
        self._runs: dict[int, bytes] = {}

    @classmethod
    def build(cls, segmentations: Iterable[Any], sizes: Iterable[tuple[int, int]]) -> "Outlines":
        """Take in COCO segmentations.

        Args:
            segmentations: One per object: polygons, an RLE with a list or a string of counts, or None.
            sizes: Height and width of each object's image.

        Raises:
            DataError: A segmentation is of no known form or its size is not that of the image.
        """
        outlines = cls()
        polygons: list[NDArray[np.float64]] = []
        ends = [0]
        for index, (segmentation, size) in enumerate(zip(segmentations, sizes, strict=True)):
            if isinstance(segmentation, dict):
                outlines._runs[index] = compress(segmentation, size)
            elif segmentation:
                polygons += usable_polygons(segmentation)
            ends.append(len(polygons))
        if polygons:
            outlines._points = np.concatenate(polygons)
        lengths = [0, *(len(polygon) for polygon in polygons)]
        outlines._point_ends = np.cumsum(lengths, dtype=np.int64)
        outlines._polygon_ends = np.array(ends, np.int64)
        return outlines

    def __contains__(self, index: int) -> bool:
        """Tell whether an object has an outline."""
        return index in self._runs or bool(self._polygon_ends[index] < self._polygon_ends[index + 1])

    def polygons(self, index: int) -> list[NDArray[np.float64]]:
        """Return the polygons of an object as flat ``x, y, x, y, ...`` arrays; none for run-length masks."""
        span = range(self._polygon_ends[index], self._polygon_ends[index + 1])
        return [self._points[self._point_ends[part] : self._point_ends[part + 1]] for part in span]

    def to_coco(self, index: int, size: tuple[int, int]) -> Any:
        """Return an object's segmentation in the form of a COCO json."""
        if index in self._runs:
            return {"size": list(size), "counts": self._runs[index].decode("ascii")}
        return [polygon.tolist() for polygon in self.polygons(index)]

    def masks(self, indices: Sequence[int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Rasterise objects of one image.

        Args:
            indices: N object indices.
            size: Height and width of their image.

        Returns:
            ``(N, height, width)`` of 0 and 1.
        """
        if not len(indices):
            return np.zeros((0, *size), np.uint8)
        runs = [self.run_length(int(index), size) for index in indices]
        return np.ascontiguousarray(_pycocotools().decode(runs).transpose(2, 0, 1))

    def run_length(self, index: int, size: tuple[int, int]) -> dict[str, Any]:
        """Return an object's mask as COCO's compressed run lengths, polygons rasterised."""
        if index in self._runs:
            return {"size": list(size), "counts": self._runs[index]}
        tools = _pycocotools()
        return tools.merge(tools.frPyObjects(self.polygons(index), *size))


def usable_polygons(segmentation: Any) -> list[NDArray[np.float64]]:
    """Return the polygons that have at least three points.

    Raises:
        DataError: It is not a list of lists of numbers.
    """
    try:
        arrays = [np.asarray(polygon, np.float64) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise DataError("a segmentation must be a list of polygons or an RLE") from error
    if any(array.ndim != 1 for array in arrays):
        raise DataError("a segmentation must be a list of polygons x, y, x, y, ... or an RLE")
    if any(not (np.abs(array) < FARTHEST).all() for array in arrays):
        raise DataError(f"a polygon has NaN or coordinates beyond {FARTHEST:.0f} pixels")
    return [array for array in arrays if len(array) >= MIN_COORDINATES and len(array) % 2 == 0]


def compress(segmentation: dict[str, Any], size: tuple[int, int]) -> bytes:
    """Return the compressed counts of an RLE.

    Raises:
        DataError: Its size is not that of the image, or its counts do not fill it.
    """
    counts, given = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(given, list | tuple) or tuple(given) != tuple(size):
        raise DataError(f"an RLE has size {given} in an image of height and width {list(size)}")
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    if isinstance(counts, bytes):
        return counts
    runs = counts if isinstance(counts, list) else []
    whole = all(type(count) is int and count >= 0 for count in runs)
    if not whole or sum(runs) != size[0] * size[1]:
        raise DataError(f"the counts of an RLE do not fill the image of height and width {list(size)}")
    return _pycocotools().frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]


def _pycocotools() -> Any:
    return require("pycocotools.mask", "detect", "Reading masks")
