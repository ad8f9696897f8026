"""Finding out what is wrong with images that have masks or classes before a minute of training is spent."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.data.classification import ClassSplit, find_classes
from piip.data.images import ImageFileError, read_size
from piip.data.labels import IGNORED, LabelledSplit
from piip.data.layout import SPLITS
from piip.data.mask_layout import find_masks
from piip.data.report import CheckReport, Findings, LabelStatistics
from piip.errors import DataError

_THREADS = 4
_MOSTLY_VOID = 0.5  # share of pixels without a class from which a mask is suspicious
_RARE = 10  # images of a class in training


def check_segmentation(
    folder: str | Path, classes: Sequence[str] = (), *, read_images: bool = True
) -> CheckReport:
    """Check images with masks and count the pixels of every class.

    Args:
        folder: What `find_masks` recognises.
        classes: Class names, where no file lists them.
        read_images: Decode every image to find truncated ones; otherwise only headers are read.

    Raises:
        DataError: No such data set was recognised.
    """
    layout = find_masks(folder, classes)
    findings = Findings()
    statistics = {}
    for name, split in layout.splits.items():
        numbers = in_threads(
            partial(_check_mask, name, split, findings, read_images), range(len(split.images))
        )
        counts = sum(numbers, np.zeros(256, np.int64))
        by_class = {label: int(counts[k]) for k, label in enumerate(split.classes)}
        statistics[name] = LabelStatistics(len(split.images), by_class, "pixels")
        if counts[IGNORED] and counts[0] and np.count_nonzero(counts) == 2:
            hint = "masks of 0 and of values without a class; write 1 for the second class"
            findings.add("error", name, hint, split.source)
        for label in (label for label, count in by_class.items() if not count):
            findings.add("warning", name, "classes without a pixel", label)
    compare_splits(findings, {name: split.images for name, split in layout.splits.items()})
    return CheckReport(layout.name, layout.folder, statistics, findings.problems())


def _check_mask(
    name: str, split: LabelledSplit, findings: Findings, read_images: bool, index: int
) -> NDArray[np.int64]:
    """Return the pixels of each label of one image."""
    try:
        size = read_size(split.images[index], decode=read_images)
        labels = split.labels(index)
    except ImageFileError as error:
        findings.add("error", name, "files that cannot be used", error)
        return np.zeros(256, np.int64)
    if labels.shape != size:
        findings.add("error", name, "masks of another size than their image", split.images[index].name)
    counts = np.bincount(labels.ravel(), minlength=256)
    if counts[IGNORED] > _MOSTLY_VOID * labels.size:
        findings.add("warning", name, "masks that are mostly without a class", split.images[index].name)
    return counts


def check_classification(folder: str | Path, *, read_images: bool = True) -> CheckReport:
    """Check images with classes and count the images of every class.

    Args:
        folder: What `find_classes` reads.
        read_images: Decode every image to find truncated ones; otherwise only headers are read.

    Raises:
        DataError: There is no training split.
    """
    findings = Findings()
    splits: dict[str, ClassSplit] = {"train": find_classes(folder, "train")}
    for name in SPLITS[1:]:
        try:
            splits[name] = find_classes(folder, name, splits["train"].classes)
        except DataError as error:
            if "has no" not in str(error):
                findings.add("error", name, "a split that cannot be used", error)
    for name, split in splits.items():
        in_threads(partial(_check_image, name, findings, read_images), split.images)
    statistics = {name: _count_classes(split) for name, split in splits.items()}
    for name, count in statistics["train"].classes.items():
        if count < _RARE:
            findings.add("warning", "train", f"classes with fewer than {_RARE} images", name)
    compare_splits(findings, {name: split.images for name, split in splits.items()})
    return CheckReport("classes", Path(folder), statistics, findings.problems())


def _check_image(name: str, findings: Findings, read_images: bool, path: Path) -> None:
    try:
        read_size(path, decode=read_images)
    except ImageFileError as error:
        findings.add("error", name, "files that cannot be used", error)


def _count_classes(split: ClassSplit) -> LabelStatistics:
    counts = Counter(split.labels)
    by_class = {label: counts[k] for k, label in enumerate(split.classes)}
    return LabelStatistics(len(split.images), by_class, "images")


def compare_splits(findings: Findings, images: Mapping[str, Sequence[Path]]) -> None:
    """Report images that are in two splits: results on them say nothing.

    Args:
        findings: Where to report.
        images: Files of every split; missing ones are passed over.
    """
    seen: dict[bytes, str] = {}
    for split, paths in images.items():
        existing = [path for path in paths if path.is_file()]
        digests = in_threads(lambda path: hashlib.sha1(path.read_bytes()).digest(), existing)
        for path, digest in zip(existing, digests, strict=True):
            other = seen.setdefault(digest, split)
            if other != split:
                findings.add("warning", f"{other} + {split}", "the same image in two splits", path.name)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Return a function of every item, found by a few threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))
