"""Every recipe in recipes/ parses, and its model can be built."""

from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from piip.cli.demo import RECIPE
from piip.presets import list_models
from piip.train.building import build_network, new_detector
from piip.train.data import DetectionData
from piip.train.recipe import load_recipe

ROOT = Path(__file__).parents[2] / "recipes"
SHARED_PARTS = {"mask_rcnn_1x", "mask_rcnn_1x_large", "mask_rcnn_1x_mix"}
RUNS = sorted(path for path in ROOT.rglob("*.yaml") if path.stem not in SHARED_PARTS)
CLASSES = ("cat", "dog")


class SkipInitialisation(TorchFunctionMode):
    """Leaves tensors of the meta device as they are: filling them costs time and changes nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.startswith("_") and args and getattr(args[0], "is_meta", False):
            return args[0]
        return func(*args, **(kwargs or {}))


def build(path: Path):
    recipe = load_recipe(path, {"model.pretrained": False})
    with torch.device("meta"), SkipInitialisation():
        return recipe, new_detector(build_network(recipe.model), recipe, CLASSES)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_recipe_builds(path):
    recipe, detector = build(path)
    assert detector.config.classes == CLASSES
    assert detector.config.masks == recipe.masks
    assert recipe.data.folder
    long, short = recipe.image.scale
    assert long >= short > 0
    if path.parent.name == "coco" and recipe.augment.policy == "resize":
        assert recipe.image.scale in {(1333, 800), (long, long * 800 // 1333)}


def test_every_published_detector_has_a_recipe():
    tasks = ("_cls", "_seg", "_llava", "_llava_13b", "_dino", "_dinov3")
    own = {"piip_nano", "piip_nano_deit", "piip_tsb_512_384_256"}
    wanted = {name for name in list_models() if not name.endswith(tasks)} - own
    assert wanted - {path.stem for path in (ROOT / "coco").glob("*.yaml")} == set()


def test_rates_follow_the_released_rule():
    recipe, detector = build(ROOT / "coco" / "piip_h6b_1024_512.yaml")
    assert (recipe.optimizer.layer_decay, recipe.optimizer.skip_stride) == (0.85, None)
    assert [len(branch.blocks) for branch in detector.backbone.branches] == [48, 32]  # skip_stride 1.5


def test_the_demo_is_the_digits_recipe():
    assert load_recipe(ROOT / "digits.yaml") == RECIPE


@pytest.mark.parametrize(
    ("name", "folder"), [("bccd", "bccd"), ("nuclei", "nuclei_dsb2018"), ("coco_tiny", "coco_tiny")]
)
def test_small_recipes_fit_their_data(shared, name, folder):
    recipe = load_recipe(ROOT / f"{name}.yaml", {"data.folder": str(shared / "data" / folder)})
    data = DetectionData(recipe)
    image, target, _ = data.train_set[0]
    assert image.shape[0] == 3
    assert ("masks" in target) == recipe.masks
    assert len(target["boxes"]) > 0
