"""Evaluating a trained model without Lightning."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress

from piip.data.classification import ClassificationDataset, find_classes
from piip.data.coco import DetectionDataset
from piip.data.labels import IGNORED
from piip.data.layout import find_dataset
from piip.data.mask_layout import find_masks
from piip.data.segmentation import SegmentationDataset
from piip.errors import ConfigError, DataError
from piip.predict import ClassificationPredictor, DetectionPredictor, Predictor, SegmentationPredictor
from piip.train.classification import scores_of
from piip.train.confusion import count_pixels, segmentation_scores
from piip.train.metrics import evaluate


def evaluate_model(predictor: Predictor, data: str, split: str, max_detections: int = 100) -> dict[str, Any]:
    """Return the metrics of a model on one split of a data set, as JSON-ready values, by kind.

    Images are read as in prediction, with the predictor's test-time augmentation if it has one.

    Args:
        predictor: The model and how it reads images.
        data: The data set's folder.
        split: ``train``, ``val`` or ``test``.
        max_detections: Detections per image that count; of a detector.

    Raises:
        DataError: The data set cannot be used.
        ConfigError: The data set has other classes than the model.
    """
    if isinstance(predictor, SegmentationPredictor):
        return evaluate_segmenter(predictor, data, split)
    if isinstance(predictor, ClassificationPredictor):
        return evaluate_classifier(predictor, data, split)
    assert isinstance(predictor, DetectionPredictor)
    return evaluate_detector(predictor, data, split, max_detections)


def evaluate_classifier(predictor: ClassificationPredictor, data: str, split: str) -> dict[str, Any]:
    """Return the accuracies of a classifier; see `evaluate_model`."""
    dataset = ClassificationDataset(find_classes(data, split, predictor.classes), predictor.image)
    pairs = []
    for index in _tracked(len(dataset), "classifying"):
        pixels, label = dataset.read(index)
        best = predictor.infer(pixels).topk(min(5, len(predictor.classes)))
        pairs.append((best.indices.tolist(), label))
    return {"classification": scores_of(pairs, predictor.classes)}


def evaluate_segmenter(predictor: SegmentationPredictor, data: str, split: str) -> dict[str, Any]:
    """Return the mean intersection over union and the accuracies of a segmenter; see `evaluate_model`."""
    try:
        source = find_masks(data, predictor.classes).split(split)
    except DataError as error:
        raise DataError(f"The model cannot be measured on {data}: {error}") from error
    dataset = SegmentationDataset(source, predictor.image)
    counts = []
    for index in _tracked(len(dataset), "segmenting"):
        pixels, truth = dataset.read(index)
        counts.append(count_pixels(predictor.infer(pixels).cpu(), truth, len(predictor.classes), IGNORED))
    return {"segmentation": segmentation_scores(counts, predictor.classes).to_dict()}


def evaluate_detector(
    predictor: DetectionPredictor, data: str, split: str, max_detections: int = 100
) -> dict[str, Any]:
    """Return the COCO metrics of a detector on one split of a data set, as JSON-ready values.

    Args:
        predictor: The detector and how it reads images.
        data: The data set's folder.
        split: ``train``, ``val`` or ``test``.
        max_detections: Detections per image that count.

    Raises:
        DataError: The data set cannot be used.
        ConfigError: The data set lacks classes of the model.
    """
    source = find_dataset(data).split(split)
    dataset = DetectionDataset(source, predictor.image, masks=False)
    unknown = [name for name in predictor.classes if name not in dataset.classes]
    if unknown:
        raise ConfigError(
            f"The model knows the class {unknown[0]!r}, which {data} has not ({', '.join(dataset.classes[:8])}); "
            "evaluate on data with the model's classes, or train a new head on this data."
        )
    dataset = DetectionDataset(dataset.index, predictor.image, masks=False, classes=predictor.classes)
    if not len(dataset.objects):
        raise DataError(
            f"{dataset.index.source} has no objects of the model's classes, so nothing can be measured."
        )
    outlined = any(item in dataset.index.outlines for item in dataset.objects.tolist())
    masks = predictor.model.config.masks and outlined  # a set of boxes alone measures boxes
    if masks:
        dataset.require_outlines(dataset.objects)
    results: list[dict[str, Any]] = []
    for pixels, image_id in (dataset.read(index) for index in _tracked(len(dataset), "detecting")):
        results += predictor.infer(pixels).to_coco(image_id, dataset.category_ids)
    scores = evaluate(dataset.coco_dict(), results, masks=masks, max_detections=max_detections)
    return {kind: score.to_dict() for kind, score in scores.items()}


def _tracked(length: int, what: str) -> Iterator[int]:
    """Yield numbers while a bar on standard error shows how far it is."""
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        yield from progress.track(range(length), description=what)
