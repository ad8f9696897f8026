"""Evaluating a trained detector without Lightning."""

from typing import Any

import torch

from piip.data.coco import DetectionDataset
from piip.data.layout import find_dataset
from piip.errors import ConfigError, DataError
from piip.predict import Predictor
from piip.train.metrics import evaluate


@torch.inference_mode()
def evaluate_detector(
    predictor: Predictor, data: str, split: str, max_detections: int = 100
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
    masks = predictor.detector.config.masks and outlined  # a set of boxes alone measures boxes
    if masks:
        dataset.require_outlines(dataset.objects)
    results: list[dict[str, Any]] = []
    for image, _, meta in (dataset[index] for index in range(len(dataset))):
        found = predictor.detector([image.to(predictor.device)], None, [meta])[0]
        results += found.to_coco(meta.image_id, dataset.category_ids)
    scores = evaluate(dataset.coco_dict(), results, masks=masks, max_detections=max_detections)
    return {kind: score.to_dict() for kind, score in scores.items()}
