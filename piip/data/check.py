"""Finding out what is wrong with a detection data set before a minute of training is spent."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.data.coco import MIN_SIDE
from piip.data.images import ImageFileError, read_size
from piip.data.index import as_id, read_raw
from piip.data.layout import DatasetLayout, SplitSource, find_dataset, read_yolo_settings
from piip.data.outlines import compress, usable_polygons
from piip.data.report import CheckReport, Findings, Problem, Severity, SplitStatistics
from piip.data.yolo import image_paths, label_path, read_yolo
from piip.errors import DataError

__all__ = ["CheckReport", "Problem", "SplitStatistics", "check_detection"]

_SMALL, _LARGE = 32**2, 96**2
_THREADS = 4
_TOLERANCE = 1.0  # pixels that a box may stick out of its image without a word


def check_detection(
    data: str | Path | DatasetLayout | SplitSource, *, read_images: bool = True
) -> CheckReport:
    """Check a data set and count what is in it.

    Args:
        data: A folder, a COCO json, a layout or one split.
        read_images: Decode every image to find truncated ones; otherwise only headers are read.

    Returns:
        Problems and statistics; problems of the data are reported, not raised.

    Raises:
        DataError: No data set was recognised.
    """
    if isinstance(data, SplitSource):
        data = DatasetLayout(data.kind.upper(), data.annotations, {data.split: data})
    layout = data if isinstance(data, DatasetLayout) else find_dataset(data)
    findings = Findings()
    splits = {}
    for split, source in layout.splits.items():
        try:
            splits[split] = _Split(source, findings, read_images)
        except DataError as error:
            findings.add("error", split, "annotations cannot be used", error)
    _compare_splits(splits, findings)
    statistics = {name: split.statistics() for name, split in splits.items()}
    return CheckReport(layout.name, layout.folder, statistics, findings.problems())


@dataclass(frozen=True)
class _Objects:
    """The annotations that name a known image and category and have a box: the rest cannot be counted."""

    entries: list[dict[str, Any]]
    boxes: NDArray[np.float64]
    image_sizes: NDArray[np.float64]


class _Split:
    """One split's raw annotations, checked on construction."""

    def __init__(self, source: SplitSource, findings: Findings, read_images: bool) -> None:
        self.source = source
        self.findings = findings
        raw = self._read()
        self.categories = {
            entry["id"]: str(entry["name"]) for entry in self._complete(raw, "categories", "id", "name")
        }
        self.images = self._complete(raw, "images", "id", "file_name")
        self.files: dict[int, Path] = {}
        self.sizes = self._check_images(read_images)
        self.objects = self._check_annotations(
            self._complete(raw, "annotations", "image_id", "category_id", "bbox")
        )
        self._check_boxes()
        self._check_outlines()
        self._check_categories()

    def add(self, severity: Severity, what: str, where: object, count: int = 1) -> None:
        self.findings.add(severity, self.source.split, what, where, count)

    def _read(self) -> dict[str, Any]:
        if self.source.kind == "coco":
            return read_raw(self.source)
        raw = read_yolo(
            self.source, lambda kind, sentence, where: self.add("error", kind, f"{where}: {sentence}")
        )
        self._check_label_files()
        return raw

    def _complete(self, raw: dict[str, Any], part: str, *keys: str) -> list[dict[str, Any]]:
        """Return the entries that have all keys, and report the others and repeated ids."""
        complete = []
        for position, entry in enumerate(raw[part]):
            missing = [key for key in keys if key not in entry]
            numbers = {key: as_id(entry[key]) for key in keys if key.endswith("id") and key in entry}
            strange = [key for key, number in numbers.items() if number is None]
            if missing:
                self.add("error", f"{part} without {missing[0]}", f"entry {position}")
            elif strange:
                key = strange[0]
                self.add(
                    "error", f"{part} whose {key} is no whole number", f"entry {position} ({entry[key]!r})"
                )
            else:
                complete.append(entry | numbers)
        for number, count in Counter(as_id(entry.get("id")) for entry in complete).items():
            if count > 1 and number is not None:
                severity: Severity = "warning" if part == "annotations" else "error"
                self.add(severity, f"duplicate ids of {part}", number, count - 1)
        return complete

    def _check_label_files(self) -> None:
        """Report label files of a YOLO split whose image is missing."""
        paths = image_paths(self.source, read_yolo_settings(self.source.annotations))
        expected = {label_path(path) for path in paths}
        if any(
            path.parent == label.parent for path, label in zip(paths, map(label_path, paths), strict=True)
        ):
            return  # labels beside the images: other text files may lie there
        for folder in sorted({path.parent for path in expected}):
            for path in sorted(folder.glob("*.txt")):
                if path not in expected:
                    self.add("warning", "label files without an image are ignored", path)

    def _check_images(self, decode: bool) -> dict[int, tuple[int, int]]:
        """Return height and width by image id; report missing, unreadable, odd and repeated files."""
        paths = [self.source.images / str(image["file_name"]) for image in self.images]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(partial(_probe, decode=decode), paths))
        sizes: dict[int, tuple[int, int]] = {}
        for image, path, size in zip(self.images, paths, found, strict=True):
            annotated = (image.get("height"), image.get("width"))
            if annotated != (None, None) and not all(
                isinstance(side, int) and side > 0 for side in annotated
            ):
                self.add("error", "images without a valid height and width", f"{path} {list(annotated)}")
                continue
            if isinstance(size, ImageFileError):
                self.add("error", "missing or unreadable images", size)
            else:
                self.files[image["id"]] = path
                if annotated not in (size, (None, None)):
                    sides = f"{path} is {size[1]} x {size[0]}, annotated {annotated[1]} x {annotated[0]}"
                    self.add("error", "images of another size than annotated", sides)
                if min(size) < MIN_SIDE:
                    self.add(
                        "note", f"images with a side below {MIN_SIDE} pixels are left out of training", path
                    )
                sizes[image["id"]] = size
            if annotated != (None, None):
                sizes[image["id"]] = (image["height"], image["width"])
        for name, count in Counter(str(image["file_name"]) for image in self.images).items():
            if count > 1:
                self.add("error", "files listed more than once", name, count - 1)
        return sizes

    def _check_annotations(self, entries: list[dict[str, Any]]) -> _Objects:
        known = {image["id"] for image in self.images}
        kept = []
        for entry in entries:
            name = f"annotation {entry.get('id')}"
            if entry["image_id"] not in known:
                self.add("error", "annotations of unknown images", f"{name} (image {entry['image_id']})")
            elif entry["category_id"] not in self.categories:
                self.add("error", "unknown category ids", f"{name} (category {entry['category_id']})")
            elif not _is_box(entry["bbox"]):
                self.add("error", "boxes that are not four numbers", f"{name} {entry['bbox']}")
            elif entry.get("area") is not None and not _is_number(entry["area"]):
                self.add("error", "areas that are no numbers", f"{name} {entry['area']!r}")
            elif entry["image_id"] in self.sizes:
                kept.append(entry)
        used = {entry["image_id"] for entry in entries if not entry.get("iscrowd", 0)}
        for image in self.images:
            if image["id"] not in used:
                self.add("note", "images without objects are left out of training", image["file_name"])
        boxes = np.array([entry["bbox"] for entry in kept], np.float64).reshape(-1, 4)
        sizes = np.array([self.sizes[entry["image_id"]] for entry in kept], np.float64).reshape(-1, 2)
        return _Objects(kept, boxes, sizes[:, ::-1])

    def _check_boxes(self) -> None:
        corner, extent = self.objects.boxes[:, :2], self.objects.boxes[:, 2:]
        limits = self.objects.image_sizes
        flat = (extent <= 0).any(1)
        thin = (extent < 1).any(1) & ~flat
        gone = ((corner >= limits) | (corner + extent <= 0)).any(1) & ~flat
        over = ((corner < -_TOLERANCE) | (corner + extent > limits + _TOLERANCE)).any(1) & ~gone & ~flat
        for what, offends in (
            ("zero-area boxes are dropped", flat),
            ("boxes thinner than a pixel are dropped", thin),
            ("boxes wholly outside their image are dropped", gone),
            ("boxes partly outside their image are clipped", over),
        ):
            for position in np.flatnonzero(offends):
                self.add("warning", what, self._place(int(position)))

    def _check_outlines(self) -> None:
        for position, entry in enumerate(self.objects.entries):
            try:
                bare = not _has_outline(entry.get("segmentation"), self.sizes[entry["image_id"]])
            except DataError as error:
                self.add("error", "segmentations of no known form", f"{self._place(position)}: {error}")
                continue
            if bare and not entry.get("iscrowd", 0):
                self.add("note", "objects without an outline: train without masks", self._place(position))

    def _check_categories(self) -> None:
        ids = sorted(self.categories)
        if ids and ids[-1] - ids[0] + 1 != len(ids):
            where = f"{len(ids)} ids from {ids[0]} to {ids[-1]}"
            self.add("note", "gaps in the category ids (labels are contiguous, results keep the ids)", where)
        used = {entry["category_id"] for entry in self.objects.entries}
        if not used:
            severity: Severity = "error" if self.source.split == "train" else "note"
            self.add(severity, "no annotations at all", self.source.annotations)
            return
        for number in ids:
            if number not in used:
                self.add("warning", "categories never used", self.categories[number])
        for name, count in Counter(self.categories.values()).items():
            if count > 1:
                self.add("warning", "category names used twice", name, count - 1)

    def _place(self, position: int) -> str:
        entry = self.objects.entries[position]
        box = [round(float(value), 2) for value in entry["bbox"]]
        return f"annotation {entry.get('id')} in image {entry['image_id']} {box}"

    def statistics(self) -> SplitStatistics:
        """Count images and objects."""
        plain = [entry for entry in self.objects.entries if not entry.get("iscrowd", 0)]
        names = Counter(self.categories[entry["category_id"]] for entry in plain)
        areas = np.array([_area(entry) for entry in plain])
        small, large = int((areas < _SMALL).sum()), int((areas > _LARGE).sum())
        per_image = Counter(entry["image_id"] for entry in plain)
        by_area = sorted(
            ((size[1], size[0]) for size in self.sizes.values()), key=lambda size: size[0] * size[1]
        )
        by_area = by_area or [(0, 0)]
        return SplitStatistics(
            images=len(self.images),
            empty=len(self.images) - len(per_image),
            boxes=len(plain),
            crowds=len(self.objects.entries) - len(plain),
            outlined=sum(bool(entry.get("segmentation")) for entry in plain),
            classes={
                self.categories[number]: names[self.categories[number]] for number in sorted(self.categories)
            },
            sizes={"small": small, "medium": len(areas) - small - large, "large": large},
            smallest=by_area[0],
            largest=by_area[-1],
            busiest=max(per_image.values(), default=0),
        )


def _compare_splits(splits: dict[str, _Split], findings: Findings) -> None:
    """Report classes that differ between splits and images that are in two of them."""
    first = next(iter(splits), "")
    for other in splits:
        if splits[other].categories != splits[first].categories:
            names = set(splits[first].categories.items()) ^ set(splits[other].categories.items())
            listed = ", ".join(sorted(f"{number} {name}" for number, name in names))
            findings.add("error", f"{first} + {other}", "classes differ", listed)
    for paths in _same_content(
        (name, path) for name, split in splits.items() for path in split.files.values()
    ):
        where = " = ".join(str(path) for _, path in paths)
        findings.add("warning", " + ".join(dict(paths)), "the same image is in more than one split", where)


def _same_content(files: Iterable[tuple[str, Path]]) -> list[list[tuple[str, Path]]]:
    """Return groups of equal files that come from different splits; only files of one length are read."""
    by_length: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, path in files:
        by_length[path.stat().st_size].append((split, path))
    by_hash: dict[bytes, list[tuple[str, Path]]] = defaultdict(list)
    for group in by_length.values():
        if len({split for split, _ in group}) > 1:
            for split, path in group:
                by_hash[hashlib.blake2b(path.read_bytes()).digest()].append((split, path))
    return [group for group in by_hash.values() if len({split for split, _ in group}) > 1]


def _probe(path: Path, decode: bool) -> tuple[int, int] | ImageFileError:
    try:
        return read_size(path, decode)
    except ImageFileError as error:
        return error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _area(entry: dict[str, Any]) -> float:
    area = entry.get("area")
    return float(entry["bbox"][2] * entry["bbox"][3] if area is None else area)


def _has_outline(segmentation: Any, size: tuple[int, int]) -> bool:
    if isinstance(segmentation, dict):
        return bool(compress(segmentation, size))
    return bool(segmentation) and bool(usable_polygons(segmentation))
