"""Validation images with what a model sees in them, beside what is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from piip.data.classification import ClassificationDataset
from piip.data.coco import DetectionDataset
from piip.data.segmentation import SegmentationDataset
from piip.tasks.classification import ImageClassifier
from piip.tasks.classified import Classification
from piip.tasks.detection import Detections, Detector, Instances
from piip.tasks.segmentation import Segmentation, Segmenter

SCORE = 0.3
Item = TypeVar("Item")


def draw_detections(detector: Detector, dataset: DetectionDataset, folder: Path, count: int) -> list[Path]:
    """Draw the predictions and the ground truth of a few validation images, spread over the set.

    Args:
        detector: In evaluation mode.
        dataset: The validation set.
        folder: Where ``NAME.png`` and ``NAME_truth.png`` go.
        count: Number of images.

    Returns:
        The drawn predictions.
    """
    drawn = []
    device = next(detector.parameters()).device
    for position in _spread(len(dataset), count):
        image, _, meta = dataset[position]
        with torch.inference_mode():
            found = detector([image.to(device)], None, [meta])
        path = dataset.index.root / meta.file_name
        names = detector.config.classes
        target = folder / f"{Path(meta.file_name).stem}.png"
        assert isinstance(found, list)
        Detections(found[0].cpu(), names, path=path).plot(target, score=SCORE)
        truth = Detections(ground_truth(dataset, position), names, path=path)
        truth.plot(target.with_name(f"{target.stem}_truth.png"), scores=False)
        drawn.append(target)
    return drawn


@torch.inference_mode()
def draw_segmentations(
    segmenter: Segmenter, dataset: SegmentationDataset, folder: Path, count: int
) -> list[Path]:
    """Draw the found and the annotated classes of a few validation images, spread over the set.

    Args:
        segmenter: In evaluation mode.
        dataset: The validation set.
        folder: Where ``NAME.png`` and ``NAME_truth.png`` go.
        count: Number of images.

    Returns:
        The drawn predictions.
    """
    drawn = []
    device = next(segmenter.parameters()).device
    for position in _spread(len(dataset), count):
        image, truth, meta = dataset[position]
        labels = segmenter.segment(image[None].to(device), meta.original_size)[0].argmax(0).to(torch.uint8)
        path = Path(meta.file_name)
        target = folder / f"{path.stem}.png"
        names = segmenter.config.classes
        Segmentation(labels.cpu(), names, path).plot(target)
        Segmentation(truth.to(torch.uint8), names, path).plot(target.with_name(f"{path.stem}_truth.png"))
        drawn.append(target)
    return drawn


@torch.inference_mode()
def draw_classifications(
    classifier: ImageClassifier, dataset: ClassificationDataset, folder: Path, count: int
) -> list[Path]:
    """Draw a few validation images, spread over the set, each with bars of its most probable classes.

    Args:
        classifier: In evaluation mode.
        dataset: The validation set.
        folder: Where ``NUMBER_NAME.png`` go.
        count: Number of images.

    Returns:
        The drawn files.
    """
    drawn = []
    device = next(classifier.parameters()).device
    names = classifier.config.classes
    for position in _spread(len(dataset), count):
        image, label, meta = dataset[position]
        probabilities = classifier(image[None].to(device))[0].float().softmax(0).cpu()
        path = Path(meta.file_name)
        target = folder / f"{position}_{path.stem}.png"
        found = Classification(probabilities, names, meta.original_size, path)
        found.plot(target, truth=names[label])
        drawn.append(target)
    return drawn


def ground_truth(dataset: DetectionDataset, position: int) -> Instances:
    """Return the annotated objects of an image as if they were detected, crowds left out."""
    index = dataset.index
    image = int(dataset.indices[position])
    labels = {category: label for label, category in enumerate(dataset.category_ids)}
    objects = [
        item
        for item in index.objects(image).tolist()
        if index.category_ids[index.categories[item]] in labels and not index.crowd[item]
    ]
    size = index.size(image)
    boxes = torch.from_numpy(np.asarray(index.boxes[objects], np.float32)).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = None
    if objects and all(item in index.outlines for item in objects):
        masks = [index.outlines.run_length(item, size) for item in objects]
    found = [labels[index.category_ids[index.categories[item]]] for item in objects]
    return Instances(boxes, torch.ones(len(objects)), torch.tensor(found, dtype=torch.int64), masks, size)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return a few items, spread over all."""
    return [items[position] for position in _spread(len(items), count)]


def _spread(length: int, count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})
