"""Validation images with what a detector finds in them, beside what is there."""

from pathlib import Path

import numpy as np
import torch

from piip.data.coco import DetectionDataset
from piip.tasks.detection import Detections, Detector, Instances

SCORE = 0.3


def draw_samples(detector: Detector, dataset: DetectionDataset, folder: Path, count: int) -> list[Path]:
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
        truth.plot(target.with_name(f"{target.stem}_truth.png"))
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


def _spread(length: int, count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length))})
