"""YOLO data sets (data.yaml and a text file per image), read as if they were COCO."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from piip.data.images import SUFFIXES, ImageFileError, read_size
from piip.data.layout import SplitSource, read_yolo_settings
from piip.errors import DataError

Problem = Callable[[str, str, Path | str], None]


def _refuse(kind: str, sentence: str, where: Path | str) -> NoReturn:
    raise DataError(f"{where}: {sentence}")


def read_yolo(source: SplitSource, problem: Problem = _refuse) -> dict[str, Any]:
    """Convert one split into the dict of a COCO json.

    Args:
        source: A split of kind ``yolo``.
        problem: Called with (kind, sentence, where) for what is wrong; the default raises at the first.

    Returns:
        ``images``, ``annotations`` and ``categories``; category ids are the class indices and file names
        are relative to ``source.images``.

    Raises:
        DataError: The yaml has no usable names or paths, or ``problem`` refused.
    """
    settings = read_yolo_settings(source.annotations)
    names = class_names(settings, source.annotations)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = count(1)
    for image_id, path in enumerate(image_paths(source, settings), start=1):
        try:
            height, width = read_size(path)
        except ImageFileError as error:
            problem("unreadable image", str(error), path)
            continue
        name = path.relative_to(source.images) if path.is_relative_to(source.images) else path
        images.append({"id": image_id, "file_name": str(name), "height": height, "width": width})
        for label, shape in read_labels(label_path(path), len(names), problem):
            found = _annotation(shape, height, width)
            annotations.append({"id": next(numbers), "image_id": image_id, "category_id": label, **found})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def class_names(settings: dict[str, Any], path: Path) -> list[str]:
    """Return the class names of a data.yaml, by index.

    Raises:
        DataError: ``names`` is missing, has holes, or differs from ``nc``.
    """
    names = settings.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(f"names of {path} must have the keys 0 to {len(names) - 1}, got {list(names)}.")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path} needs names, a list of the classes.")
    if settings.get("nc", len(names)) != len(names):
        raise DataError(f"{path} says nc: {settings['nc']} but names {len(names)} classes.")
    return [str(name) for name in names]


def image_paths(source: SplitSource, settings: dict[str, Any]) -> list[Path]:
    """Return the image files of a split, sorted within each entry of the yaml.

    Raises:
        DataError: An entry is neither a folder nor a text file, or there is no image.
    """
    entries = settings[source.split]
    entries = entries if isinstance(entries, list) else [entries]
    paths = [path for entry in entries for path in _entry_paths(source.images, str(entry))]
    if not paths:
        raise DataError(f"{source.annotations}: no image lies in {source.split}: {settings[source.split]}.")
    return paths


def _entry_paths(root: Path, entry: str) -> list[Path]:
    """Return the images of a folder or of a text file that lists them."""
    # Roboflow writes ../train/images although the folder lies beside the yaml.
    inside = entry
    while inside.startswith("../"):
        inside = inside.removeprefix("../")
    for path in (root / entry, root / inside):
        if path.is_dir():
            return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if path.is_file() and path.suffix == ".txt":
            lines = path.read_text(encoding="utf-8").split("\n")
            return [path.parent / line.strip() for line in lines if line.strip()]
    raise DataError(f"{root / entry} is neither an image folder nor a text file that lists images.")


def label_path(image: Path) -> Path:
    """Return the text file of an image: the last ``images`` folder of its path becomes ``labels``."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, num_classes: int, problem: Problem) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the class and the 4 box numbers or the polygon of each line; a missing file has no objects."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            label, *values = (float(word) for word in line.split())
        except ValueError:
            problem("bad label line", "expected a class and numbers between 0 and 1.", where)
            continue
        shape = np.array(values)
        if (
            not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0))
            or not np.isfinite(shape).all()
        ):
            problem(
                "bad label line", f"expected 4 box numbers or 3 and more points, got {len(values)}.", where
            )
        elif not (label.is_integer() and 0 <= label < num_classes):
            problem("unknown class", f"class {label:g} is not between 0 and {num_classes - 1}.", where)
        elif shape.min() < -0.01 or shape.max() > 1.01:
            problem("not normalised", "coordinates must be divided by the image size.", where)
        else:
            yield int(label), shape


def _annotation(shape: NDArray[np.float64], height: int, width: int) -> dict[str, Any]:
    """Return bbox, area and segmentation in pixels."""
    points = shape.reshape(-1, 2) * (width, height)
    if len(points) == 2:
        (centre_x, centre_y), (box_width, box_height) = points
        corner = (centre_x - box_width / 2, centre_y - box_height / 2)
        return {"bbox": [*corner, box_width, box_height], "area": box_width * box_height, "iscrowd": 0}
    low, high = points.min(0), points.max(0)
    x, y = points.T
    area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return {
        "bbox": [*low, *(high - low)],
        "area": area,
        "iscrowd": 0,
        "segmentation": [points.reshape(-1)],
    }
