"""Recognising how images and labels of pixels lie in a folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piip.data import ade20k
from piip.data.images import SUFFIXES
from piip.data.labels import IGNORED, LabelledSplit, MaskSplit, outline_split
from piip.data.layout import SPLITS, Layout, SplitSource, find_dataset
from piip.errors import DataError, nearest

_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_MASK_FOLDERS = ("masks", "annotations", "labels")

# Names and ids of the classes that Cityscapes is evaluated on, in label order.
_CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26,
    "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip


def has_masks(folder: Path) -> bool:
    """Return whether a folder has images and masks in a layout of its own; what they hold is not looked at."""
    if (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir():
        return True
    pairs = [_pair_of_folders(folder, split) for split in SPLITS]
    return any(pair is not None and _listed(pair[1]) for pair in pairs)


def find_masks(folder: str | Path, classes: Sequence[str] = ()) -> Layout[LabelledSplit]:
    """Recognise a data set for semantic segmentation.

    Args:
        folder: ADE20K (images/training, annotations/training), Cityscapes (leftImg8bit, gtFine), images and masks
            of the same names (images/train and masks/train, or train/images and train/masks), or a data set for
            detection whose objects have outlines, which become classes beside the background.
        classes: Class names to keep, in label order; pixels of the others are ignored. Where nothing says what the
            masks' values mean (no classes.json or classes.txt), the names of the values in their order.

    Raises:
        DataError: Nothing fits, an image has no mask, nobody says what the values in the masks mean, or the data
            have no class of a name.
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
    return Layout(f"{layout.name} outlines", folder, _OutlineSplits(layout.splits, classes))


class _OutlineSplits(Mapping[str, LabelledSplit]):
    """Splits that are read when they are asked for: one may lack outlines or classes that another has."""

    def __init__(self, sources: Mapping[str, SplitSource], classes: Sequence[str]) -> None:
        self._sources, self._classes = sources, tuple(classes)
        self._read: dict[str, LabelledSplit] = {}

    def __getitem__(self, name: str) -> LabelledSplit:
        if name not in self._read:
            self._read[name] = outline_split(self._sources[name], self._classes)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources


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
    return _split(root, images, masks, *_chosen(_CITYSCAPES, classes, folder))


def _ade20k(folder: Path, split: str, classes: Sequence[str]) -> MaskSplit | None:
    name = {"train": "training", "val": "validation"}.get(split, split)
    root = folder / "images" / name
    if not root.is_dir() or not (folder / "annotations" / name).is_dir():
        return None
    images = _listed(root)
    masks = [folder / "annotations" / name / path.relative_to(root).with_suffix(".png") for path in images]
    own = tuple(_read_classes(folder).get("classes", ()))
    known = set(classes) <= set(ade20k.CLASSES)
    names = own or (ade20k.CLASSES if known else tuple(classes))  # others have made data in its layout, too
    values = {label: number for number, label in enumerate(names, start=1)}
    return _split(root, images, masks, *_chosen(values, classes, folder))


def _pairs(folder: Path, split: str, classes: Sequence[str]) -> MaskSplit | None:
    found = _pair_of_folders(folder, split)
    return _paired(folder, *found, classes) if found is not None else None


def _pair_of_folders(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Return where the images and the masks of a split are."""
    for name in _NAMES[split]:
        for masks in _MASK_FOLDERS:
            for images_root, masks_root in (
                (folder / "images" / name, folder / masks / name),
                (folder / name / "images", folder / name / masks),
            ):
                if images_root.is_dir() and masks_root.is_dir():
                    return images_root, masks_root
    return None


def _paired(folder: Path, images_root: Path, masks_root: Path, classes: Sequence[str]) -> MaskSplit:
    settings = _read_classes(folder)
    names = tuple(settings.get("classes", ())) or tuple(classes)
    if not names:
        raise DataError(
            f"{folder} does not say what the values in its masks mean; add data.classes with the names in order, "
            "or a classes.txt with a name per line."
        )
    first = 1 if settings.get("reduce_zero_label") else 0
    values = {name: first + number for number, name in enumerate(names)}
    files = _by_name(masks_root)
    images = _by_name(images_root)
    masks = [files.get(name, masks_root / f"{name}.png") for name in images]
    return _split(images_root, list(images.values()), masks, *_chosen(values, classes, folder))


def _by_name(root: Path) -> dict[str, Path]:
    """Return the image files below a folder by their path in it without suffix.

    Raises:
        DataError: Two differ in nothing but the suffix.
    """
    found: dict[str, Path] = {}
    for path in _listed(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{found[name]} and {path} have the same name; rename or remove one of them.")
        found[name] = path
    return found


def _chosen(
    values: Mapping[str, int], classes: Sequence[str], folder: Path
) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Return class names and the table of labels, given the value of every class and the names to keep.

    Raises:
        DataError: There is no class of a name.
    """
    names = tuple(classes) or tuple(values)
    for name in names:
        if name not in values:
            raise DataError(f"{folder} has no class {name!r}. {nearest(name, values)}")
    return names, _table(values[name] for name in names)


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
