"""Recognising how a data set lies in its folder: COCO, Roboflow or YOLO."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from piip.errors import DataError, require

SPLITS = ("train", "val", "test")

_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_YEARS = ("2017", "2014", "")
_ROBOFLOW = "_annotations.coco.json"
_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class SplitSource:
    """Where the annotations and the images of one split lie.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        kind: ``coco`` (one json) or ``yolo`` (a data.yaml and one text file per image).
        annotations: The json or the yaml.
        images: Folder that the file names of the annotations are relative to.
    """

    split: str
    kind: Literal["coco", "yolo"]
    annotations: Path
    images: Path


Split = TypeVar("Split")


@dataclass(frozen=True)
class Layout(Generic[Split]):
    """A recognised data set.

    Attributes:
        name: Name of the layout, for people.
        folder: What was looked at.
        splits: The splits that exist, by name.
    """

    name: str
    folder: Path
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Return one split.

        Raises:
            DataError: The data set has no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.folder} has no {name} split; found: {', '.join(self.splits)} ({self.name} layout)."
            )
        return self.splits[name]


class DatasetLayout(Layout[SplitSource]):
    """A recognised data set for detection."""


def find_dataset(folder: str | Path, images: str | Path | None = None, split: str = "train") -> DatasetLayout:
    """Recognise a data set.

    Args:
        folder: A folder, or a single COCO json.
        images: Image folder of a single json; the json's own folder when not given.
        split: What the single json is used as.

    Returns:
        The layout with at least one split.

    Raises:
        DataError: Nothing fits; the message lists what was looked for.
    """
    folder = Path(folder)
    if folder.is_file() and folder.suffix == ".json":
        root = Path(images) if images is not None else folder.parent
        if not root.is_dir():
            raise DataError(f"The image folder {root} of {folder} does not exist.")
        return DatasetLayout("single json", folder, {split: SplitSource(split, "coco", folder, root)})
    if folder.is_file() and folder.suffix in (".yaml", ".yml"):
        return DatasetLayout("YOLO", folder, _yolo_splits(folder))
    if not folder.is_dir():
        raise DataError(f"The data set {folder} does not exist; give a folder, a COCO json or a data.yaml.")
    for name, find in (("COCO", _coco), ("Roboflow", _roboflow), ("YOLO", _yolo)):
        if splits := find(folder):
            return DatasetLayout(name, folder, splits)
    raise DataError(
        f"No data set was recognised in {folder}; looked for annotations/instances_train2017.json or "
        f"annotations/train.json with an image folder train2017/ or train/ (COCO), train/{_ROBOFLOW} "
        f"(Roboflow) and {_YAML[0]} (YOLO). Images with masks or in folders of a "
        "class each are data of other tasks (segmentation, classification)."
    )


def _coco(folder: Path) -> dict[str, SplitSource]:
    found = {}
    for split in SPLITS:
        names = [name + year for year in _YEARS for name in _NAMES[split]]
        candidates = [
            folder / "annotations" / f"{prefix}{name}.json" for name in names for prefix in ("instances_", "")
        ]
        annotations = next((path for path in candidates if path.is_file()), None)
        if annotations is not None:
            found[split] = SplitSource(split, "coco", annotations, _coco_images(folder, annotations, names))
    return found


def _coco_images(folder: Path, annotations: Path, names: list[str]) -> Path:
    """Return the image folder of a split: the one named like its json comes first."""
    own = annotations.stem.removeprefix("instances_")
    roots = [parent / name for name in (own, *names) for parent in (folder, folder / "images")]
    roots.append(folder / "images")
    for root in roots:
        if root.is_dir():
            return root
    raise DataError(
        f"{annotations} has no image folder beside it; expected {folder / own} or {folder / 'images' / own}."
    )


def _roboflow(folder: Path) -> dict[str, SplitSource]:
    found = {}
    for split in SPLITS:
        for name in _NAMES[split]:
            if (path := folder / name / _ROBOFLOW).is_file():
                found[split] = SplitSource(split, "coco", path, path.parent)
    return found


def _yolo(folder: Path) -> dict[str, SplitSource]:
    path = next((folder / name for name in _YAML if (folder / name).is_file()), None)
    return _yolo_splits(path) if path is not None else {}


def _yolo_splits(path: Path) -> dict[str, SplitSource]:
    """Return the splits that a data.yaml names."""
    settings = read_yolo_settings(path)
    root = path.parent / str(settings.get("path") or "")
    # A downloaded yaml often holds a path of its author: then its own folder is meant.
    root = root if root.is_dir() else path.parent
    found = {split: SplitSource(split, "yolo", path, root) for split in SPLITS if settings.get(split)}
    if not found:
        raise DataError(f"{path} names no images: it needs the keys train and val.")
    return found


def read_yolo_settings(path: Path) -> dict[str, Any]:
    """Read a data.yaml.

    Raises:
        DataError: The file is no mapping or no YAML.
        MissingExtraError: PyYAML is not installed.
    """
    yaml = require("yaml", "cli", "Reading data.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path} must hold keys such as train, val and names.")
    return settings
