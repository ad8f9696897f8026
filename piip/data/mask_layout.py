"""Recognising how images and labels of pixels lie in a folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.data import ade20k
from piip.data.images import SUFFIXES
from piip.data.labels import IGNORED, LabelledSplit, MaskSplit, outline_split
from piip.data.layout import SPLITS, Layout, find_dataset
from piip.errors import DataError

_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_MASK_FOLDERS = ("masks", "annotations", "labels")

# Names and ids of the classes that Cityscapes is evaluated on, in label order.
_CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
    "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip


def find_masks(folder: str | Path, classes: Sequence[str] = ()) -> Layout[LabelledSplit]:
    """Recognise a data set for semantic segmentation.

    Args:
        folder: ADE20K (images/training, annotations/training), Cityscapes (leftImg8bit, gtFine), images and masks
            of the same names (images/train and masks/train, or train/images and train/masks), or a data set for
            detection whose objects have outlines, which become classes beside the background.
        classes: Class names in the order of the masks' values, where no classes.json or classes.txt lists them.

    Raises:
        DataError: Nothing fits, an image has no mask, or nobody says what the values in the masks mean.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"The data set {folder} does not exist; give a folder of images and masks.")
    finders: tuple[tuple[str, Callable[[Path, str, Sequence[str]], MaskSplit | None]], ...] = (
        ("Cityscapes", _cityscapes),
        ("ADE20K", _ade20k),
        ("images and masks", _pairs),
    )
    for name, find in finders:
        found = {split: part for split in SPLITS if (part := find(folder, split, classes))}
        if found:
            return Layout(name, folder, found)
    return _outlines(folder, classes)


def _outlines(folder: Path, classes: Sequence[str]) -> Layout[LabelledSplit]:
    try:
        layout = find_dataset(folder)
    except DataError as error:
        raise DataError(
            f"No images with masks were recognised in {folder}; looked for leftImg8bit and gtFine (Cityscapes), "
            "images/training and annotations/training (ADE20K), images/train and masks/train, train/images and "
            "train/masks, annotations/train.json (outlines of objects)."
        ) from error
    splits = {name: outline_split(source, classes) for name, source in layout.splits.items()}
    return Layout(f"{layout.name} outlines", folder, splits)


def _cityscapes(folder: Path, split: str, classes: Sequence[str]) -> MaskSplit | None:
    root = folder / "leftImg8bit" / split
    if not root.is_dir():
        return None
    images = sorted(root.glob("*/*_leftImg8bit.png"))
    stems = [path.name.removesuffix("_leftImg8bit.png") for path in images]
    truth = folder / "gtFine" / split
    masks = [
        truth / path.parent.name / f"{stem}_gtFine_labelIds.png"
        for path, stem in zip(images, stems, strict=True)
    ]
    return _split(root, images, masks, tuple(_CITYSCAPES), _table(_CITYSCAPES.values()))


def _ade20k(folder: Path, split: str, classes: Sequence[str]) -> MaskSplit | None:
    name = {"train": "training", "val": "validation"}.get(split, split)
    root = folder / "images" / name
    if not root.is_dir() or not (folder / "annotations" / name).is_dir():
        return None
    images = _listed(root)
    masks = [folder / "annotations" / name / f"{path.stem}.png" for path in images]
    names = tuple(classes) or ade20k.CLASSES
    return _split(root, images, masks, names, _table(range(1, len(names) + 1)))


def _pairs(folder: Path, split: str, classes: Sequence[str]) -> MaskSplit | None:
    for name in _NAMES[split]:
        for masks in _MASK_FOLDERS:
            for images_root, masks_root in (
                (folder / "images" / name, folder / masks / name),
                (folder / name / "images", folder / name / masks),
            ):
                if images_root.is_dir() and masks_root.is_dir():
                    return _paired(folder, images_root, masks_root, classes)
    return None


def _paired(folder: Path, images_root: Path, masks_root: Path, classes: Sequence[str]) -> MaskSplit:
    settings = _read_classes(folder)
    names = tuple(classes) or tuple(settings.get("classes", ()))
    if not names:
        raise DataError(
            f"{folder} does not say what the values in its masks mean; add data.classes with the names in order, "
            "or a classes.txt with a name per line."
        )
    first = 1 if settings.get("reduce_zero_label") else 0
    values = range(first, first + len(names))
    files = {path.stem: path for path in _listed(masks_root)}
    images = _listed(images_root)
    masks = [files.get(path.stem, masks_root / f"{path.stem}.png") for path in images]
    return _split(images_root, images, masks, names, _table(values))


def _read_classes(folder: Path) -> dict[str, Any]:
    """Return what classes.json or classes.txt says."""
    listed, described = folder / "classes.txt", folder / "classes.json"
    if described.is_file():
        try:
            settings = json.loads(described.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{described} is no JSON ({error}).") from error
        settings = {"classes": settings} if isinstance(settings, list) else settings
        if not isinstance(settings, dict) or not all(isinstance(n, str) for n in settings.get("classes", ())):
            raise DataError(f"{described} must hold a list of names, or a dictionary with the key classes.")
        return settings
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
        return {"classes": [line.strip() for line in lines if line.strip()]}
    return {}


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _table(values: Any) -> NDArray[np.uint8]:
    """Return the label of every value of a mask file, given the values in label order."""
    table = np.full(1 << 16, IGNORED, np.uint8)
    for label, value in enumerate(values):
        table[value] = label
    return table


def _split(
    root: Path,
    images: Sequence[Path],
    masks: Sequence[Path],
    classes: tuple[str, ...],
    table: NDArray[np.uint8],
) -> MaskSplit:
    if not images:
        raise DataError(f"{root} has no images.")
    missing = [path for path in masks if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images)} images in {root} have no mask, the first {missing[0]}; add them, or "
            "remove the images."
        )
    if not 2 <= len(classes) <= IGNORED:
        raise DataError(f"{root} has {len(classes)} classes; a segmenter tells 2 to {IGNORED} apart.")
    return MaskSplit(root, tuple(images), classes, tuple(masks), table)
