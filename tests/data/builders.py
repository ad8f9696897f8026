"""Tiny data sets written for tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, sizes: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """Write one image of noise for every name -> (height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


def box_polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotation(number: int, image: int, category: int, box: list[float], **changes) -> dict:
    plain = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [box_polygon(*box)],
    }
    return {key: value for key, value in {**plain, **changes}.items() if value is not ...}


SIZES = {"a.png": (48, 64), "b.png": (80, 50), "c.png": (40, 40), "d.png": (20, 100)}


def coco_raw() -> dict:
    """Four images: two objects and a crowd; one object; none; too small. Category ids 3, 7, 90."""
    crowd = {"size": [48, 64], "counts": [48 * 10, 48 * 5, 48 * 49]}
    return {
        "images": [
            {"id": 10 * (k + 1), "file_name": name, "height": h, "width": w}
            for k, (name, (h, w)) in enumerate(SIZES.items())
        ],
        "annotations": [
            annotation(1, 20, 3, [10, 20, 20, 30]),
            annotation(2, 10, 90, [4, 6, 20, 10]),
            annotation(3, 10, 7, [-5, 30, 30, 30]),
            annotation(4, 10, 7, [10, 0, 5, 48], iscrowd=1, segmentation=crowd),
            annotation(5, 10, 3, [5, 5, 0.5, 10]),
            annotation(6, 10, 3, [70, 5, 10, 10]),
            annotation(7, 40, 3, [5, 5, 10, 10]),
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def write_coco(folder: Path, raw: dict | None = None, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Write the same images and annotations as every split of a COCO folder."""
    for seed, split in enumerate(splits):
        write_images(folder / split, SIZES, seed)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(raw or coco_raw()))
    return folder


def write_yolo(folder: Path, names: object = ("cat", "dog"), yaml_train: str = "images/train") -> Path:
    """A box in a.png, a triangle in b.png, nothing in c.png."""
    write_images(folder / "images/train", {name: SIZES[name] for name in ("a.png", "b.png", "c.png")})
    write_images(folder / "images/val", {"e.png": (30, 30)})
    labels = folder / "labels/train"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n")
    (labels / "b.txt").write_text("0 0.1 0.1 0.9 0.1 0.5 0.9\n")
    listed = list(names) if isinstance(names, tuple) else names
    (folder / "data.yaml").write_text(
        f"path: /of/the/author\ntrain: {yaml_train}\nval: images/val\nnames: {json.dumps(listed)}\n"
    )
    return folder
