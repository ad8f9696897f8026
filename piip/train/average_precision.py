"""Precision and recall of one class by COCO's rules (https://cocodataset.org/#detection-eval).

The numbers are those of pycocotools, which compares every detection with every object, forty times over; here only
pairs that overlap are looked at. Overlaps come from pycocotools.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.errors import require

Entry = Mapping[str, Any]  # an annotation or a result of COCO
ByImage = Mapping[int, Sequence[Entry]]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoUs from which a detection counts."""
RECALLS = np.linspace(0, 1, 101)
"""Where precision is looked up."""
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Smallest and largest area in pixels, both included."""


@dataclass(frozen=True)
class _Outcome:
    """What became of the D detections of a class in one image, for A ranges of area and T thresholds."""

    scores: list[float]
    matched: NDArray[np.bool_]  # (A, T, D)
    ignored: NDArray[np.bool_]  # (A, T, D)
    counted: NDArray[np.int64]  # (A,) objects that should be found


def precision_recall(
    truth: ByImage, found: ByImage, kind: str, max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare the detections of a class with its objects.

    Args:
        truth: Annotations with ``bbox`` or, as compressed RLE, ``segmentation``; ``area`` and ``iscrowd``.
        found: Results of the same images with ``score``.
        kind: ``bbox`` or ``segm``.
        max_detections: Detections per image that count, the best first.

    Returns:
        Precision (T, R, A) at `THRESHOLDS`, `RECALLS` and `AREAS`, and the highest recall (T, A); -1 where there is
        no object.
    """
    images = sorted({*truth, *found})
    outcomes = [
        _compare(truth.get(image, ()), _best(found.get(image, ()), max_detections), kind) for image in images
    ]
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(AREAS)), -1.0)
    recall = np.full((len(THRESHOLDS), len(AREAS)), -1.0)
    counts = np.sum([outcome.counted for outcome in outcomes], axis=0, initial=0)
    if not outcomes or not counts.any():
        return precision, recall
    scores = np.concatenate([outcome.scores for outcome in outcomes])
    order = np.argsort(-scores, kind="stable")
    matched = np.concatenate([outcome.matched for outcome in outcomes], axis=2)[:, :, order]
    ignored = np.concatenate([outcome.ignored for outcome in outcomes], axis=2)[:, :, order]
    right = np.cumsum(matched & ~ignored, axis=2, dtype=np.float64)
    wrong = np.cumsum(~matched & ~ignored, axis=2, dtype=np.float64)
    for area in np.flatnonzero(counts):
        for step in range(len(THRESHOLDS)):
            curve = _curve(right[area, step], wrong[area, step], int(counts[area]))
            precision[step, :, area], recall[step, area] = curve
    return precision, recall


def _best(found: Sequence[Entry], max_detections: int) -> list[Entry]:
    return sorted(found, key=lambda entry: -entry["score"])[:max_detections]


def _compare(truth: Sequence[Entry], found: Sequence[Entry], kind: str) -> _Outcome:
    """Match the detections of one image, best first, with its objects."""
    shape = (len(AREAS), len(THRESHOLDS), len(found))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    crowd = [bool(entry.get("iscrowd", 0)) for entry in truth]
    areas = np.array([entry["area"] for entry in truth], float)
    sizes = _areas(found, kind)
    near = _near(truth, found, kind, crowd)
    counted = []
    for index, (low, high) in enumerate(AREAS.values()):
        left_out = [bool(c or not low <= a <= high) for c, a in zip(crowd, areas.tolist(), strict=True)]
        counted.append(left_out.count(False))
        if near:
            # Objects that count come first: a detection takes one of the others only if none of them is left.
            ordered = [sorted(pairs, key=lambda pair: left_out[pair[0]]) for _, pairs in near]
            for step, threshold in enumerate(THRESHOLDS.tolist()):
                taken: set[int] = set()
                for (detection, _), pairs in zip(near, ordered, strict=True):
                    best = _choose(pairs, threshold, taken, crowd, left_out)
                    if best is not None:
                        taken.add(best)
                        matched[index, step, detection] = True
                        ignored[index, step, detection] = left_out[best]
        ignored[index] |= ~matched[index] & ((sizes < low) | (sizes > high))
    return _Outcome([entry["score"] for entry in found], matched, ignored, np.array(counted))


def _choose(
    pairs: Sequence[tuple[int, float]],
    threshold: float,
    taken: set[int],
    crowd: Sequence[bool],
    left_out: Sequence[bool],
) -> int | None:
    """Return the free object that a detection overlaps most, the later one of two; a crowd is never taken."""
    best, overlap = None, min(threshold, 1 - 1e-10)
    for item, value in pairs:
        if item in taken and not crowd[item]:
            continue
        if best is not None and left_out[item] and not left_out[best]:
            break
        if value >= overlap:
            best, overlap = item, value
    return best


def _near(
    truth: Sequence[Entry], found: Sequence[Entry], kind: str, crowd: Sequence[bool]
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Return the detections that overlap objects, with these objects and the overlaps."""
    if not truth or not found:
        return []
    mask = require("pycocotools.mask", "detect", "Evaluation")
    key = "bbox" if kind == "bbox" else "segmentation"
    overlaps = mask.iou(
        [entry[key] for entry in found], [entry[key] for entry in truth], list(map(int, crowd))
    )
    pairs: dict[int, list[tuple[int, float]]] = {}
    for detection, item in zip(*np.nonzero(overlaps >= THRESHOLDS[0]), strict=True):
        pairs.setdefault(int(detection), []).append((int(item), float(overlaps[detection, item])))
    return list(pairs.items())


_MOST_MASKS = 255
"""Masks that pycocotools 2.0.11 measures at once: it puts their number into 8 bits, which numpy 2 refuses."""


def _areas(found: Sequence[Entry], kind: str) -> NDArray[np.float64]:
    if not found:
        return np.empty(0)
    if kind == "bbox":
        return np.array([entry["bbox"][2] * entry["bbox"][3] for entry in found], float)
    mask = require("pycocotools.mask", "detect", "Evaluation")
    # Not that of the box, which pycocotools takes where a result has one.
    masks = [entry["segmentation"] for entry in found]
    parts = [mask.area(masks[start : start + _MOST_MASKS]) for start in range(0, len(masks), _MOST_MASKS)]
    return np.concatenate(parts).astype(float)


def _curve(
    right: NDArray[np.float64], wrong: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], float]:
    """Return the precision (R,) at every recall, and the highest recall."""
    looked_up = np.zeros(len(RECALLS))
    if not len(right):
        return looked_up, 0.0
    recall, precision = right / count, right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or a higher one
    places = np.searchsorted(recall, RECALLS, side="left")
    reached = places < len(right)
    looked_up[reached] = precision[places[reached]]
    return looked_up, float(recall[-1])
