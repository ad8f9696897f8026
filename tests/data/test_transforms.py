import json

import pytest
import torch
from safetensors.torch import load_file
from torchvision import tv_tensors

from piip.data.geometry import scale_factor
from piip.data.settings import AugmentConfig, ImageConfig
from piip.data.transforms import (
    RandomCrop,
    clip_boxes,
    drop_empty,
    evaluation_transform,
    prepare_image,
    seeded,
    training_transform,
)
from piip.errors import ConfigError

CASES = ["up_landscape", "up_portrait", "down", "inet", "same", "short_limit"]


def make_sample(height: int = 60, width: int = 90, masks: bool = True) -> dict:
    """Three objects, each marked by its own grey level, so that pixels tell where they went."""
    boxes = torch.tensor([[5.0, 8, 25, 40], [40, 10, 85, 30], [60, 42, 90, 60]])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    stack = torch.zeros(3, height, width, dtype=torch.uint8)
    for index, box in enumerate(boxes.int().tolist()):
        area = (slice(box[1], box[3]), slice(box[0], box[2]))
        image[(slice(None), *area)] = 80 * (index + 1)
        stack[(index, *area)] = 1
    sample = {
        "image": tv_tensors.Image(image),
        "boxes": clip_boxes(boxes, (height, width)),
        "labels": torch.arange(3),
    }
    return {**sample, "masks": tv_tensors.Mask(stack)} if masks else sample


def pad(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    out = image.new_zeros(3, *size[:2])
    out[:, : image.shape[1], : image.shape[2]] = image
    return out


@pytest.fixture(scope="module")
def golden(shared):
    cases = json.loads((shared / "golden/heads/transforms.json").read_text())["cases"]
    return cases, load_file(shared / "golden/heads/transforms.safetensors")


def released(case: dict) -> ImageConfig:
    return ImageConfig(tuple(case["mean"]), tuple(case["std"]), tuple(case["scale"]), "exact")


@pytest.mark.parametrize("name", CASES)
def test_detection_pipeline_is_bit_exact(golden, name):
    cases, tensors = golden
    image = prepare_image(tensors[f"{name}.bgr"].flip(-1).permute(2, 0, 1), released(cases[name]))
    assert list(image.shape[1:]) == cases[name]["img_shape"][:2]
    assert torch.equal(pad(image, cases[name]["pad_shape"]), tensors[f"{name}.out"])


@pytest.mark.parametrize("name", ["full_1120", "full_1568"])
def test_full_size_pipeline_is_bit_exact(golden, name):
    cases, tensors = golden
    image = prepare_image(tensors["full.bgr"].flip(-1).permute(2, 0, 1), released(cases[name]))
    padded = pad(image, cases[name]["pad_shape"])
    assert torch.equal(padded[:, ::13, ::13], tensors[f"{name}.out_every13"])
    assert padded.double().sum().item() == pytest.approx(cases[name]["sum"], rel=1e-12)


def test_segmentation_pipeline_is_the_same_function_without_a_long_limit(golden):
    cases, tensors = golden
    image = prepare_image(
        tensors["seg.bgr"].flip(-1).permute(2, 0, 1), ImageConfig(scale=(10**9, 512), resize="exact")
    )
    assert list(image.shape[1:]) == cases["seg"]["img_shape"][:2]
    assert torch.equal(image[:, ::5, ::5], tensors["seg.out_every5"])


@pytest.mark.parametrize("scale", [(180, 120), (45, 40)])
def test_evaluation_scales_everything_alike(scale):
    sample = make_sample()
    out = evaluation_transform(ImageConfig(scale=scale))(sample)
    size = tuple(out["image"].shape[1:])
    assert size == ((120, 180) if scale[0] == 180 else (30, 45))
    factor = torch.tensor(scale_factor((60, 90), size) * 2)
    assert torch.equal(out["boxes"].as_subclass(torch.Tensor), sample["boxes"] * factor)
    assert out["masks"].shape == (3, *size)
    assert out["masks"].dtype == torch.uint8


AUGMENTS = {
    "grid": AugmentConfig.grid(133),
    "multi": AugmentConfig.multi_scale([40, 60, 70], 100),
    "detr": AugmentConfig.detr_multiscale(0.125, 96),
}


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("masks", [True, False])
def test_boxes_and_masks_follow_the_pixels(name, masks):
    transform = training_transform(AUGMENTS[name], ImageConfig())
    seen = 0
    for seed in range(25):
        with seeded(seed):
            out = transform(make_sample(masks=masks))
        height, width = out["image"].shape[1:]
        assert len(out["boxes"]) == len(out["labels"])
        assert ("masks" in out) == masks
        for index, (box, label) in enumerate(zip(out["boxes"].tolist(), out["labels"].tolist(), strict=True)):
            assert 0 <= box[0] < box[2] <= width
            assert 0 <= box[1] < box[3] <= height
            x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
            inside = out["image"][0, y, x].item()
            if min(box[2] - box[0], box[3] - box[1]) > 3:
                seen += 1
                assert inside == 80 * (label + 1)
                if masks:
                    rows, columns = torch.nonzero(out["masks"][index], as_tuple=True)
                    hull = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    assert (
                        torch.stack(hull).sub(torch.tensor(box)).abs().max() <= 2.6
                    )  # two nearest steps, each up to 1.7 times
    assert seen > 25


def test_grid_sizes_are_the_released_ones():
    assert AugmentConfig.grid(1120).scales == ((1120, 672),)
    assert AugmentConfig.grid(1568).scales == ((1568, 941),)


def test_detr_sizes_stay_in_their_ranges():
    transform = training_transform(AugmentConfig.detr_multiscale(0.125, None), ImageConfig())
    heights = set()
    for seed in range(60):
        with seeded(seed):
            height, width = transform(make_sample())["image"].shape[1:]
        assert min(height, width) in {int(0.125 * side) for side in range(480, 801, 32)} or max(
            height, width
        ) == int(0.125 * 1333)
        heights.add(height)
    assert len(heights) > 8


def test_last_crop_limits_the_image():
    transform = training_transform(AugmentConfig.detr_multiscale(0.2, 64), ImageConfig())
    with seeded(1):
        assert max(transform(make_sample())["image"].shape[1:]) == 64


def test_flip_has_no_minus_one():
    sample = make_sample()
    out = training_transform(AugmentConfig(flip=1.0), ImageConfig(scale=(90, 60)))(sample)
    assert out["boxes"][0].tolist() == [90 - 25, 8, 90 - 5, 40]
    assert torch.equal(out["image"], sample["image"].flip(-1))
    assert torch.equal(out["masks"], sample["masks"].flip(-1))


def test_crop_covers_every_place_and_empties_are_dropped():
    crop, places = RandomCrop(10, 10), set()
    for seed in range(80):
        with seeded(seed):
            out = drop_empty(crop(make_sample(20, 20 if seed % 2 else 90)))
        assert out["image"].shape[1:] == (10, 10)
        assert len(out["boxes"]) == len(out["masks"]) == len(out["labels"])
        assert out["boxes"].canvas_size == (10, 10)
        places.add(len(out["boxes"]))
    assert {0, 1} <= places


def test_same_seed_same_sample_and_the_outer_state_is_untouched():
    transform = training_transform(AUGMENTS["detr"], ImageConfig())
    before = torch.get_rng_state()

    def draw(*entropy):
        with seeded(*entropy):
            return transform(make_sample())["image"]

    first = draw(1, 2, 3)
    assert torch.equal(first, draw(1, 2, 3))
    others = [draw(1, 2, other) for other in range(4, 9)]
    assert not all(first.shape == other.shape and torch.equal(first, other) for other in others)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ImageConfig(std=(1, 0, 1)), r"std is \(1.0, 0.0, 1.0\); give a number above 0"),
        (lambda: ImageConfig(scale=(0, 5)), r"scale is \(0, 5\); give a number from 1"),
        (lambda: ImageConfig(resize="fats"), "Did you mean 'fast'"),
        (lambda: AugmentConfig(policy="detrr"), "Did you mean 'detr'"),
        (lambda: AugmentConfig(flip=1.5), "flip is 1.5; give a number from 0 to 1"),
        (lambda: AugmentConfig(factor=0), "above 0"),
        (lambda: AugmentConfig(scales=((1, 0),)), "sides below one pixel"),
    ],
)
def test_impossible_settings_are_refused(build, text):
    with pytest.raises(ConfigError, match=text):
        build()
