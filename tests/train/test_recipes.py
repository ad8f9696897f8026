"""Every recipe in recipes/ parses, and its model can be built."""

import json
from pathlib import Path

import pytest

from piip.cli.demo import RECIPE
from piip.meta import on_meta
from piip.presets import list_models
from piip.tasks.detection import DINO, CascadeRCNN
from piip.train.building import build_network
from piip.train.detection import DetectionData
from piip.train.recipe import load_recipe
from piip.train.task import task_of

ROOT = Path(__file__).parents[2] / "recipes"
SHARED_PARTS = {
    "mask_rcnn_1x",
    "mask_rcnn_1x_large",
    "mask_rcnn_1x_mix",
    "cascade_rcnn_1x",
    "cascade_rcnn_3x_ms",
    "dino_4scale",
    "upernet_80k",
    "upernet_160k",
    "released_20_epochs",
}
RUNS = sorted(
    path for path in ROOT.rglob("*.yaml") if path.stem not in SHARED_PARTS and "llava" not in path.stem
)
CLASSES = ("cat", "dog")


def build(path: Path):
    recipe = load_recipe(path, {"model.pretrained": False})
    with on_meta():
        return recipe, task_of(recipe).new_model(build_network(recipe.model), recipe, CLASSES)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_recipe_builds(path):
    recipe, model = build(path)
    assert model.config.classes == CLASSES
    assert recipe.data.folder
    if recipe.task == "detection":
        assert model.config.masks == recipe.masks
    elif recipe.task == "segmentation":
        assert recipe.augment.crop == model.config.crop_size
    long, short = recipe.image.scale
    assert long >= short > 0
    if path.parent.name == "coco" and recipe.augment.policy == "resize":
        assert recipe.image.scale in {(1333, 800), (long, long * 800 // 1333)}


def test_every_published_detector_has_a_recipe():
    tasks = ("_cls", "_seg", "_llava", "_llava_13b", "_dinov3")
    own = {"piip_nano", "piip_nano_deit", "piip_tsb_512_384_256"}
    wanted = {name for name in list_models() if not name.endswith(tasks)} - own
    assert wanted - {path.stem for path in (ROOT / "coco").glob("*.yaml")} == set()


def test_every_published_cascade_has_a_recipe(shared):
    """A row of the papers' table has a recipe with its figures, its schedule and its pyramid."""
    rows = json.loads((shared / "paper/figures.json").read_text())["rows"]
    rows = [row for row in rows if "Cascade" in row["setting"] and row["model"].startswith("PIIP")]
    files = {path: path.read_text() for path in (ROOT / "coco").glob("*_cascade_*.yaml")}
    assert len(rows) == len(files) == 3
    for row in rows:
        figures = "box AP {box_AP}, mask AP {mask_AP}".format(**row["published"])
        (path,) = [path for path, text in files.items() if figures in text]
        recipe, detector = build(path)
        assert isinstance(detector, CascadeRCNN)
        assert recipe.model.name.startswith(row["model"].lower().replace("-", "_"))
        assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-4, 0.05)
        assert recipe.data.batch_size * recipe.trainer.devices == 16
        long = "3x" in row["setting"]
        assert (recipe.trainer.epochs, recipe.schedule.milestones) == (
            (36, (27, 33)) if long else (12, (8, 11))
        )
        assert recipe.augment.policy == ("detr" if "MS" in row["setting"] else "resize")
        side = detector.backbone.config.branches[-1].image_size
        if long:
            assert (recipe.augment.crop, recipe.augment.factor) == (side, side / 1024)
            assert recipe.image.scale == (int(1333 * side / 1024), int(800 * side / 1024))


def test_released_dinos_have_their_settings():
    recipe, detector = build(ROOT / "coco" / "piip_sbl_1792_1120_672_deit384_dino.yaml")
    assert isinstance(detector, DINO)
    config = detector.config
    assert (config.num_queries, config.num_denoising, config.box_noise) == (900, 100, 1.0)
    assert (config.pad_divisor, config.detections_per_image, recipe.trainer.clip_norm) == (224, 300, 0.1)
    assert (recipe.trainer.epochs, recipe.schedule.milestones) == (36, (27, 33))


def test_every_published_segmenter_has_a_recipe():
    wanted = {name for name in list_models() if name.endswith("_seg")}
    assert wanted <= {path.stem for path in (ROOT / "ade20k").glob("*.yaml")}


def test_released_classifiers_have_their_settings():
    recipe, classifier = build(ROOT / "imagenet" / "piip_tsb_368_192_128_cls.yaml")
    assert (classifier.config.head, classifier.config.token) == ("branch_heads", "class")
    assert (recipe.optimizer.lr, recipe.optimizer.rest_factor, recipe.augment.mixup) == (3e-5, 10, 0.8)
    released = {"piip_tsb_368_192_128_cls", "piip_sbl_384_192_128_cls", "piip_sbl_320_160_96_cls"}
    assert released <= {path.stem for path in (ROOT / "imagenet").glob("*.yaml")}


def test_released_segmenters_have_their_settings():
    recipe, segmenter = build(ROOT / "ade20k" / "piip_h6b_512_512_seg.yaml")
    assert (segmenter.config.channels, segmenter.config.crop_size, segmenter.config.stride) == (
        1536,
        512,
        341,
    )
    assert (recipe.optimizer.lr, recipe.optimizer.layer_decay, recipe.schedule.kind) == (4e-5, 0.95, "poly")


def test_rates_follow_the_released_rule():
    recipe, detector = build(ROOT / "coco" / "piip_h6b_1024_512.yaml")
    assert (recipe.optimizer.layer_decay, recipe.optimizer.skip_stride) == (0.85, None)
    assert [len(branch.blocks) for branch in detector.backbone.branches] == [48, 32]  # skip_stride 1.5


def test_the_demo_is_the_digits_recipe():
    assert load_recipe(ROOT / "digits.yaml") == RECIPE


@pytest.mark.parametrize(
    ("name", "folder"),
    [("bccd", "bccd"), ("bccd_dino", "bccd"), ("nuclei", "nuclei_dsb2018"), ("coco_tiny", "coco_tiny")],
)
def test_small_recipes_fit_their_data(shared, name, folder):
    recipe = load_recipe(ROOT / f"{name}.yaml", {"data.folder": str(shared / "data" / folder)})
    data = DetectionData(recipe)
    image, target, _ = data.train_set[0]
    assert image.shape[0] == 3
    assert ("masks" in target) == recipe.masks
    assert len(target["boxes"]) > 0


def test_the_street_recipe_fits_its_data(shared):
    recipe = load_recipe(ROOT / "camvid.yaml", {"data.folder": str(shared / "data" / "camvid")})
    data = task_of(recipe).data(recipe)
    image, labels, _ = data.train_set[0]
    assert image.shape == (3, 256, 256)
    assert labels.shape == (256, 256)
    assert len(data.train_set.classes) == 11
