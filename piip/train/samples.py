"""Validation images with what a model sees in them, beside what is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from piip.data.classification import ClassificationDataset
from piip.data.coco import DetectionDataset
from piip.data.segmentation import SegmentationDataset
from piip.tasks.classification import ImageClassifier
from piip.tasks.classified import Classification
from piip.tasks.detection import Detections, Detector, Instances
from piip.tasks.segmentation import Segmentation, Segmenter

SCORE = 0.3
Item = TypeVar("Item")


class Draw(Protocol):
    """Draws what a model sees in one item of a data set."""

    def __call__(self, model: Any, dataset: Any, position: int, folder: Path) -> None:
        """Write one or more pictures into a folder."""


def draw_samples(draw: Draw, model: nn.Module, dataset: Any, folder: Path, count: int) -> None:
    """Draw the predictions for a few validation images, spread over the set, and what is there.

    Args:
        draw: One of the functions below.
        model: In evaluation mode.
        dataset: The validation set.
        folder: Where the pictures go.
        count: Number of images.
    """
    with torch.inference_mode():
        for position in _spread(len(dataset), count):
            draw(model, dataset, position, folder)


def draw_detection(model: Detector, dataset: DetectionDataset, position: int, folder: Path) -> None:
    """Draw found and annotated objects as ``POSITION_NAME.png`` and ``POSITION_NAME_truth.png``."""
    image, _, meta = dataset[position]
    (found,) = model([image.to(_device(model))], None, [meta])
    assert isinstance(found, Instances)
    names, path = model.config.classes, dataset.index.root / meta.file_name
    truth = Detections(ground_truth(dataset, position), names, path=path)
    picture = folder / f"{position}_{path.stem}"
    truth.plot(Path(f"{picture}_truth.png"), scores=False)
    Detections(found.cpu(), names, path=path).plot(Path(f"{picture}.png"), score=SCORE)


def draw_segmentation(model: Segmenter, dataset: SegmentationDataset, position: int, folder: Path) -> None:
    """Draw the found and the annotated classes as ``POSITION_NAME.png`` and ``POSITION_NAME_truth.png``."""
    image, truth, meta = dataset[position]
    labels = model.segment(image[None].to(_device(model)), meta.original_size)[0].argmax(0)
    names, path = model.config.classes, Path(meta.file_name)
    picture = folder / f"{position}_{path.stem}"
    Segmentation(truth.to(torch.uint8), names, path).plot(Path(f"{picture}_truth.png"))
    Segmentation(labels.to(torch.uint8).cpu(), names, path).plot(Path(f"{picture}.png"))


def draw_classification(
    model: ImageClassifier, dataset: ClassificationDataset, position: int, folder: Path
) -> None:
    """Draw the most probable classes beside the image as ``POSITION_NAME.png``."""
    image, label, meta = dataset[position]
    probabilities = model(image[None].to(_device(model)))[0].float().softmax(0).cpu()
    names, path = model.config.classes, Path(meta.file_name)
    found = Classification(probabilities, names, meta.original_size, path)
    found.plot(folder / f"{position}_{path.stem}.png", truth=names[label])


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


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
