"""The built-in data set: made when it is first needed, from installed packages, without a download."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piip.data.layout import DatasetLayout, find_dataset
from piip.data.scenes import SMALLEST, Scene, draw_scene, load_material
from piip.errors import ConfigError, DataError, require
from piip.files import cannot_write, write_json

CLASSES = tuple("0123456789")

_MANIFEST = "digits.json"
_VERSION = 1  # part of the parameters: a change of the drawing makes older folders stale
_QUALITY = 92

Progress = Callable[[int, int], None]


def make_digits(
    folder: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    size: int = 640,
    seed: int = 0,
    progress: Progress | None = None,
) -> DatasetLayout:
    """Write handwritten digits of 12 to 200 pixels on photographs as a COCO data set.

    Training and validation share neither digits nor photographs. Every image depends on the seed and on its
    own number only, so that a larger set begins with a smaller one. A folder made with the same parameters
    is used as it is; the folder appears under its name only when it is complete.

    Args:
        folder: Where ``train/``, ``val/`` and ``annotations/`` go.
        num_train: Number of training images.
        num_val: Number of validation images.
        size: Square root of the area of an image in pixels; aspect ratios vary from 3:4 to 4:3.
        seed: Seed of everything.
        progress: Called with (images done, images in all) after each.

    Returns:
        What ``find_dataset(folder)`` returns.

    Raises:
        ConfigError: A number is out of range.
        DataError: The folder holds something else.
        PiipError: The folder cannot be written.
        MissingExtraError: scikit-learn, scikit-image or pycocotools is not installed.
    """
    if min(num_train, num_val) < 1 or size < 4 * SMALLEST or seed < 0:
        raise ConfigError(
            f"Digits need at least one image a split, a size of at least {4 * SMALLEST} and a seed from 0; got "
            f"{num_train} and {num_val} images, size {size}, seed {seed}."
        )
    folder = Path(folder)
    counts = {"train": num_train, "val": num_val}
    parameters = {"version": _VERSION, **counts, "size": size, "seed": seed}
    if not _is_made(folder, parameters):
        with _new_folder(folder, parameters) as draft:
            _write(draft, counts, size, seed, progress or (lambda done, total: None))
            write_json(draft / _MANIFEST, parameters)
    return find_dataset(folder)


def _write(folder: Path, counts: dict[str, int], size: int, seed: int, progress: Progress) -> None:
    done = 0
    for number, (split, count) in enumerate(counts.items()):
        material = load_material(split)
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in range(1, count + 1):
            scene = draw_scene(material, size, np.random.default_rng((seed, number, image_id)))
            name = f"{image_id:06d}.jpg"
            Image.fromarray(scene.image).save(folder / split / name, quality=_QUALITY, subsampling=0)
            height, width = scene.image.shape[:2]
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations += _annotations(scene, image_id, first=len(annotations) + 1)
            done += 1
            progress(done, sum(counts.values()))
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / "annotations" / f"{split}.json", content, indent=None)


def _annotations(scene: Scene, image_id: int, first: int) -> list[dict[str, Any]]:
    """Return the COCO annotations of one picture, with exact masks as RLE."""
    tools = require("pycocotools.mask", "detect", "Writing masks")
    found = []
    for number, (label, mask) in enumerate(zip(scene.labels, scene.masks, strict=True), start=first):
        run = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": list(run["size"]), "counts": run["counts"].decode("ascii")}
        entry = {"id": number, "image_id": image_id, "category_id": label + 1, "iscrowd": 0}
        found.append({**entry, "bbox": _box(mask), "area": int(mask.sum()), "segmentation": segmentation})
    return found


def _box(mask: NDArray[np.bool_]) -> list[int]:
    """Return x, y, width and height of a mask's pixels."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_made(folder: Path, parameters: dict[str, Any]) -> bool:
    """Tell whether the folder has what is wanted, or can be replaced or made.

    Raises:
        DataError: It holds something that was not made here.
    """
    manifest = _manifest(folder)
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= _made(manifest)):
        raise DataError(f"{folder} already holds something else; choose another folder for the digits.")
    return manifest == parameters


def _made(manifest: dict[str, Any] | None) -> set[str]:
    return set() if manifest is None else {_MANIFEST, "annotations", "train", "val"}


@contextlib.contextmanager
def _new_folder(folder: Path, parameters: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder that takes the name of ``folder`` when the block ends without an error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield draft
        draft.chmod(0o755)
        if _manifest(folder) not in (None, parameters):
            shutil.rmtree(folder)
        os.replace(draft, folder)
    except OSError as error:
        if _manifest(folder) != parameters:  # else another process was faster with the same
            raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
