"""COCO metrics: overall, by object size, by class (https://cocodataset.org/#detection-eval)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.errors import ConfigError, require
from piip.train.average_precision import AREAS, Entry, precision_recall

_IOU_50, _IOU_75 = 0, 5  # positions in COCO's thresholds 0.50, 0.55, ... 0.95
_RECALLS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class Scores:
    """Metrics of boxes or of masks; None where the ground truth has no such object.

    Attributes:
        AP: Average precision, mean over IoU thresholds 0.50 to 0.95 and over classes.
        AP50: At IoU 0.50.
        AP75: At IoU 0.75.
        AP_small: Objects below 32 x 32 pixels.
        AP_medium: Objects from 32 x 32 to 96 x 96 pixels.
        AP_large: Objects above 96 x 96 pixels.
        AR: Average recall with the full number of detections per image.
        AR_small: Recall of small objects.
        AR_medium: Recall of medium objects.
        AR_large: Recall of large objects.
        classes: AP and AP50 of every class.
        precision50: Mean precision at IoU 0.50 where the recall is 0, 0.1, ..., 1.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    AR: float | None
    AR_small: float | None
    AR_medium: float | None
    AR_large: float | None
    classes: Mapping[str, Mapping[str, float | None]]
    precision50: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values."""
        return asdict(self)

    def numbers(self, prefix: str) -> dict[str, float]:
        """Return the overall metrics that exist, under ``prefix/name``, for loggers."""
        values = {name: value for name, value in self.to_dict().items() if name.startswith("A")}
        return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}


def evaluate(
    ground_truth: dict[str, Any],
    detections: Iterable[Mapping[str, Any]],
    *,
    masks: bool = False,
    max_detections: int = 100,
) -> dict[str, Scores]:
    """Compare detections with the ground truth.

    Args:
        ground_truth: A COCO dict, crowds included.
        detections: COCO results (``image_id``, ``category_id``, ``bbox``, ``score`` and, for masks, a compressed
            RLE as ``segmentation``).
        masks: Evaluate masks as well.
        max_detections: Detections per image that count, the best first.

    Returns:
        `Scores` of ``box`` and, if asked for, ``mask``.

    Raises:
        ConfigError: ``max_detections`` is below 1.
        MissingExtraError: pycocotools is not installed.
    """
    if max_detections < 1:
        raise ConfigError(f"max_detections is {max_detections}; give a number from 1.")
    found = _by_class_and_image(detections)
    truth = _by_class_and_image(ground_truth["annotations"])
    if masks:
        sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
        truth_masks = _by_class_and_image(_with_run_lengths(ground_truth["annotations"], sizes))
    categories = sorted(ground_truth["categories"], key=lambda entry: entry["id"])
    scores = {"box": _scores(categories, truth, found, "bbox", max_detections)}
    if masks:
        scores["mask"] = _scores(categories, truth_masks, found, "segm", max_detections)
    return scores


def _by_class_and_image(entries: Iterable[Entry]) -> Mapping[int, Mapping[int, Sequence[Entry]]]:
    sorted_out: dict[int, dict[int, list[Entry]]] = {}
    for entry in entries:
        images = sorted_out.setdefault(entry["category_id"], {})
        images.setdefault(entry["image_id"], []).append(entry)
    return sorted_out


def _with_run_lengths(annotations: Iterable[Entry], sizes: Mapping[int, tuple[int, int]]) -> Iterator[Entry]:
    """Yield annotations whose masks are all compressed run lengths, as those of detections are."""
    tools = require("pycocotools.mask", "detect", "Evaluation")
    for annotation in annotations:
        outline, size = annotation["segmentation"], sizes[annotation["image_id"]]
        if isinstance(outline, list):
            outline = tools.merge(tools.frPyObjects(outline, *size))
        elif isinstance(outline["counts"], list):
            outline = tools.frPyObjects(outline, *size)
        yield {**annotation, "segmentation": outline}


def _scores(
    categories: Sequence[Entry],
    truth: Mapping[int, Mapping[int, Sequence[Entry]]],
    found: Mapping[int, Mapping[int, Sequence[Entry]]],
    kind: str,
    max_detections: int,
) -> Scores:
    parts = [
        precision_recall(truth.get(entry["id"], {}), found.get(entry["id"], {}), kind, max_detections)
        for entry in categories
    ]
    precision = np.stack([part[0] for part in parts], axis=2)  # thresholds, recalls, classes, areas
    recall = np.stack([part[1] for part in parts], axis=1)
    by_class = {
        entry["name"]: {"AP": _mean(precision[:, :, k, 0]), "AP50": _mean(precision[_IOU_50, :, k, 0])}
        for k, entry in enumerate(categories)
    }
    sizes = {name: area for area, name in enumerate(AREAS) if area}
    at_50 = [precision[_IOU_50, round(r * 100), :, 0] for r in _RECALLS]
    return Scores(
        AP=_mean(precision[..., 0]),
        AP50=_mean(precision[_IOU_50, ..., 0]),
        AP75=_mean(precision[_IOU_75, ..., 0]),
        AR=_mean(recall[..., 0]),
        **{f"AP_{name}": _mean(precision[..., area]) for name, area in sizes.items()},
        **{f"AR_{name}": _mean(recall[..., area]) for name, area in sizes.items()},
        classes=by_class,
        precision50=tuple(_mean(values) or 0.0 for values in at_50),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what was measured: the rest is -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def main_metric(scores: Mapping[str, Scores]) -> float:
    """Return the number that decides which checkpoint is the best: mask AP where there is one, else box AP."""
    for kind in ("mask", "box"):
        if kind in scores and (value := scores[kind].AP) is not None:
            return value
    return 0.0


def score_rows(
    scores: Mapping[str, Scores], names: Sequence[str] = ()
) -> list[tuple[str, list[float | None]]]:
    """Return the metrics as rows of a table: a name and one value per kind of ``scores``."""
    chosen = names or [name for name in Scores.__annotations__ if name.startswith("A")]
    return [(name, [getattr(score, name) for score in scores.values()]) for name in chosen]
