"""What a detector is given: checks that refuse damaged images and annotations before they spoil a run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from piip.errors import DataError
from piip.tasks.detection.config import DetectorConfig

Target = Mapping[str, Tensor]
BORDER_TOLERANCE = 0.5  # pixels by which rounding may put a box outside of its image


def check_images(images: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse images that no network can see.

    Raises:
        DataError: There are none, or one is no finite float tensor (3, h, w).
    """
    if len(images) == 0:
        raise DataError("The batch holds no image; give at least one.")
    for image, name in zip(images, names, strict=True):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise DataError(f"{name} has the shape {tuple(image.shape)}; an image is (3, height, width).")
        if not image.is_floating_point():
            raise DataError(f"{name} is {image.dtype}; normalise it to float32 first.")
    finite = torch.stack([image.isfinite().all() for image in images])
    if not finite.all():
        bad = names[int((~finite).nonzero()[0, 0])]
        raise DataError(f"{bad} holds NaN or infinity; check the file and its normalisation.")


def check_targets(
    config: DetectorConfig, targets: Sequence[Target], images: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Refuse targets from which nothing can be learnt.

    Raises:
        DataError: A box, label or mask is missing, misshapen, outside of the image or of the classes.
    """
    if len(targets) != len(images):
        raise DataError(f"There are {len(targets)} targets for {len(images)} images; give one for each.")
    for target, image, name in zip(targets, images, names, strict=True):
        height, width = image.shape[1:]
        for key in ("boxes", "labels", *(["masks"] if config.masks else [])):
            if key not in target:
                raise DataError(f"The target of {name} has no {key!r}, which this detector learns from.")
        _check_shapes(config, target, (height, width), name)
        _check_boxes(target["boxes"], (height, width), name)
        _check_labels(config, target["labels"], name)


def _check_shapes(config: DetectorConfig, target: Target, size: tuple[int, int], name: str) -> None:
    count = len(target["boxes"])
    expected = {"boxes": (count, 4), "labels": (count,)} | ({"masks": (count, *size)} if config.masks else {})
    for key, shape in expected.items():
        if tuple(target[key].shape) != shape:
            raise DataError(
                f"{key} of {name} have the shape {tuple(target[key].shape)}; {count} objects need {shape}."
            )


def _check_boxes(boxes: Tensor, size: tuple[int, int], name: str) -> None:
    limit = boxes.new_tensor([size[1], size[0]] * 2) + BORDER_TOLERANCE
    # NaN compares as false: a box must pass every test.
    inside = ((boxes >= -BORDER_TOLERANCE) & (boxes <= limit)).all(1)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if (inside & solid).all():
        return
    bad = int((~(inside & solid)).nonzero()[0, 0])
    box = [round(value, 2) for value in boxes[bad].tolist()]
    problem = "has no area" if inside[bad] else f"does not lie in the image of {size[1]} x {size[0]} pixels"
    raise DataError(f"Box {bad} of {name}, {box} (x1, y1, x2, y2), {problem}; clip or drop it.")


def _check_labels(config: DetectorConfig, labels: Tensor, name: str) -> None:
    if labels.dtype != torch.int64:
        raise DataError(f"labels of {name} are {labels.dtype}; they are int64 numbers of classes.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < config.num_classes:
        bad = next(label for label in labels.tolist() if not 0 <= label < config.num_classes)
        raise DataError(
            f"{name} has the label {bad}, but the detector has the {config.num_classes} classes "
            f"0..{config.num_classes - 1}; train a new head for these classes."
        )
