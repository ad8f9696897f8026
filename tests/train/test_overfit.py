"""A handful of pictures to a near-perfect metric, for every task, through the same runs as all training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from piip.files import write_json
from piip.train.recipe import recipe_from_dict
from piip.train.run import run_training
from tests.data.builders import annotation

pytestmark = pytest.mark.slow

SIDE = 128
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230)}
TRAINER = {"accelerator": "cpu", "devices": 1, "samples": 1, "log_every": 10, "clip_norm": 1.0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Six pictures of coloured discs on noise, as COCO objects and, by their outlines, as labels of pixels."""
    root = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(0)
    (root / "train").mkdir()
    images, objects = [], []
    angles = np.arange(24) * (2 * np.pi / 24)
    for number in range(6):
        picture = Image.fromarray(random.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
        for place, category in enumerate(random.permutation(3)[: 2 + number % 2]):
            radius = int(random.integers(12, 20))
            x, y = 32 + 64 * (place % 2), 32 + 64 * (place // 2)
            outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
            ImageDraw.Draw(picture).polygon(
                [tuple(point) for point in outline], tuple(COLOURS.values())[category]
            )
            box = [x - radius, y - radius, 2 * radius, 2 * radius]
            entry = annotation(
                len(objects) + 1, number, int(category) + 1, box, segmentation=[outline.flatten().tolist()]
            )
            objects.append(entry)
        picture.save(root / "train" / f"{number}.png")
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, start=1)]
    (root / "annotations").mkdir()
    write_json(
        root / "annotations" / "train.json",
        {"images": images, "annotations": objects, "categories": categories},
    )
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Twelve pictures of coloured discs, one colour each, in a folder per class."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / "train" / name).mkdir(parents=True)
        for number in range(4):
            picture = Image.fromarray(random.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8))
            x, y = random.integers(30, SIDE - 30, 2).tolist()
            ImageDraw.Draw(picture).ellipse((x - 20, y - 20, x + 20, y + 20), colour)
            picture.save(root / "train" / name / f"{number}.png")
    return root


def learn(data: Path, out: Path, epochs: int, **changes) -> dict:
    torch.set_num_threads(2)
    values = {
        "name": "by heart",
        "model": {"name": "piip_nano"},
        "data": {"folder": str(data), "train": "train", "val": "train", "batch_size": 3, "workers": 0},
        "image": {"scale": [SIDE, SIDE]},
        "augment": {"flip": 0.0},
        "optimizer": {"lr": 1e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 10},
        "trainer": TRAINER | {"epochs": epochs, "eval_every": epochs},
    }
    return run_training(recipe_from_dict(values | changes), out).read_results()


RCNN = {
    "fpn_channels": 64,
    "representation_size": 128,
    "mask_channels": 32,
    "rpn_post_nms": 100,
    "rpn_pre_nms_train": 300,
    "box_samples": 64,
    "anchor_scale": 4,
}


def test_mask_rcnn(scenes, tmp_path):
    scores = learn(scenes, tmp_path / "run", 60, detector=RCNN)
    assert scores["box"]["AP50"] > 0.95
    assert scores["mask"]["AP50"] > 0.95


def test_dino(scenes, tmp_path):
    head = {"kind": "dino", "embed_dim": 64, "num_groups": 8, "encoder_depth": 1, "decoder_depth": 2}
    sizes = {"ffn_dim": 128, "num_queries": 30, "num_denoising": 20, "detections_per_image": 30}
    model = {"name": "piip_nano", "changes": {"merging": {"kind": "conv", "pyramid_levels": [2, 3, 4]}}}
    scores = learn(scenes, tmp_path / "run", 100, detector=head | sizes, model=model)
    assert scores["box"]["AP50"] > 0.95


def test_upernet(scenes, tmp_path):
    pytest.importorskip("transformers")
    crop = {"policy": "crop", "crop": SIDE, "ratios": [1.0, 1.0], "flip": 0.0, "largest_share": 1.0}
    head = {"channels": 64, "crop_size": SIDE, "stride": 85}
    scores = learn(scenes, tmp_path / "run", 150, task="segmentation", augment=crop, segmenter=head)
    assert scores["segmentation"]["mIoU"] > 0.9


def test_classifier(folders, tmp_path):
    model = {"name": "piip_nano", "changes": {"merging": {"kind": "none", "pyramid_levels": []}}}
    scores = learn(folders, tmp_path / "run", 20, task="classification", model=model)
    assert scores["classification"]["top1"] == 1
