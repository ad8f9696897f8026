"""Folders of images and label masks, and what the network gets of them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from piip.data.images import ImageFileError
from piip.data.labels import IGNORED
from piip.data.mask_layout import find_masks
from piip.data.segmentation import SegmentationDataset, collate
from piip.data.settings import AugmentConfig, ImageConfig
from piip.errors import ConfigError, DataError
from tests.data.builders import write_images

SIZES = {"a.png": (48, 64), "b.png": (60, 40)}
CROP = AugmentConfig(policy="crop", crop=32, photometric=True)


def write_masks(folder, sizes, values=(0, 1, 2), dtype=np.uint8):
    """Write masks of horizontal stripes of values."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (height, width) in sizes.items():
        rows = np.array(values)[np.arange(height) * len(values) // height]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.repeat(rows[:, None], width, 1).astype(dtype)).save(folder / name)


@pytest.fixture
def pairs(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / "images" / split, SIZES)
        write_masks(tmp_path / "masks" / split, SIZES, (0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path


def test_pairs_of_images_and_masks(pairs):
    layout = find_masks(pairs)
    assert layout.name == "images and masks"
    assert set(layout.splits) == {"train", "val"}
    split = layout.split("train")
    assert split.classes == ("sky", "road", "car")
    assert [path.name for path in split.images] == ["a.png", "b.png"]
    image, labels, meta = SegmentationDataset(split, ImageConfig(scale=(1000, 24)))[0]
    assert image.shape == (3, 24, 32)
    assert labels.shape == (48, 64) == meta.original_size
    assert labels.unique().tolist() == [0, 1, 2, IGNORED]
    with pytest.raises(DataError, match="has no test split; found: train, val"):
        layout.split("test")


def test_splits_with_images_and_masks_inside(tmp_path):
    write_images(tmp_path / "train" / "images", SIZES)
    write_masks(tmp_path / "train" / "labels", SIZES)
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    assert len(find_masks(tmp_path).split("train").images) == 2


def test_ade20k(tmp_path):
    for split in ("training", "validation"):
        write_images(tmp_path / "images" / split, {"x_1.jpg": (40, 50)})
        write_masks(tmp_path / "annotations" / split, {"x_1.png": (40, 50)}, (0, 1, 150))
    split = find_masks(tmp_path).split("val")
    assert len(split.classes) == 150
    labels = SegmentationDataset(split, ImageConfig())[0][1]
    assert labels.unique().tolist() == [0, 149, IGNORED], "0 is no class, k is label k - 1"
    assert len(set(split.classes)) == 150
    assert (split.classes[0], split.classes[149]) == ("wall", "flag")


def test_cityscapes(tmp_path):
    stem = "aachen_000000_000019"
    write_images(tmp_path / "leftImg8bit" / "train" / "aachen", {f"{stem}_leftImg8bit.png": (40, 50)})
    write_masks(
        tmp_path / "gtFine" / "train" / "aachen", {f"{stem}_gtFine_labelIds.png": (40, 50)}, (0, 7, 26, 33)
    )
    split = find_masks(tmp_path).split("train")
    labels = SegmentationDataset(split, ImageConfig())[0][1]
    assert [split.classes[k] for k in labels.unique().tolist()[:-1]] == ["road", "car", "bicycle"]
    assert labels.max() == IGNORED


def test_masks_that_begin_at_one(pairs):
    (pairs / "classes.txt").unlink()
    (pairs / "classes.json").write_text(json.dumps({"classes": ["road", "car"], "reduce_zero_label": True}))
    labels = SegmentationDataset(find_masks(pairs).split("train"), ImageConfig())[0][1]
    assert labels.unique().tolist() == [0, 1, IGNORED]


def test_sixteen_bit_masks_and_palettes(tmp_path):
    write_images(tmp_path / "images" / "train", SIZES)
    write_masks(tmp_path / "masks" / "train", {"a.png": SIZES["a.png"]}, (0, 1, 300), np.uint16)
    paletted = Image.fromarray(np.full(SIZES["b.png"], 1, np.uint8))
    paletted.putpalette([200, 10, 10] * 256)
    paletted.save(tmp_path / "masks" / "train" / "b.png")
    dataset = SegmentationDataset(find_masks(tmp_path, ("sky", "road")).split("train"), ImageConfig())
    assert dataset[0][1].unique().tolist() == [0, 1, IGNORED]
    assert dataset[1][1].unique().tolist() == [1]


def test_crops_are_equal_in_size_random_and_repeatable(pairs):
    split = find_masks(pairs).split("train")
    dataset = SegmentationDataset(split, ImageConfig(scale=(64, 48)), CROP, seed=3)
    images, labels, metas = collate([dataset[(0, 0)], dataset[(0, 1)]])
    assert images.shape == (2, 3, 32, 32)
    assert labels.shape == (2, 32, 32)
    assert labels.dtype == torch.int64
    assert len(metas) == 2
    assert torch.equal(dataset[(0, 0)][0], dataset[(0, 0)][0])
    assert not torch.equal(dataset[(0, 0)][0], dataset[(1, 0)][0])


def test_labels_follow_their_pixels(tmp_path):
    """An image whose grey level is its label: after any resize and crop they still agree."""
    size = (64, 96)
    write_masks(tmp_path / "masks" / "train", {"a.png": size}, (0, 1))
    grey = np.asarray(Image.open(tmp_path / "masks" / "train" / "a.png")) * 200
    (tmp_path / "images" / "train").mkdir(parents=True)
    Image.fromarray(np.repeat(grey[..., None], 3, 2).astype(np.uint8)).save(
        tmp_path / "images" / "train" / "a.png"
    )
    plain = ImageConfig(mean=(0, 0, 0), std=(200, 200, 200), scale=(96, 64))
    dataset = SegmentationDataset(
        find_masks(tmp_path, ("dark", "bright")).split("train"), plain, AugmentConfig(policy="crop", crop=80)
    )
    for epoch in range(5):
        image, labels, _ = dataset[(epoch, 0)]
        kept = labels != IGNORED
        agree = (image[0] > 0.5).long()[kept] == labels[kept]
        assert agree.float().mean() > 0.97
        assert kept.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "masks" / "train" / "b.png").unlink(), "1 of 2 images .* have no mask"),
        (lambda root: (root / "classes.txt").unlink(), "add data.classes"),
        (lambda root: (root / "classes.txt").write_text("sky\n"), "has 1 classes"),
        (lambda root: (root / "classes.json").write_text("{"), "is no JSON"),
    ],
)
def test_unusable_folders(pairs, change, message):
    change(pairs)
    with pytest.raises(DataError, match=message):
        find_masks(pairs).split("train")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: write_masks(path.parent, {path.name: (10, 10)}),
            "is 10 x 10 pixels but its image is 64 x 48",
        ),
        (lambda path: path.write_bytes(b"no image"), "cannot be read"),
        (lambda path: Image.new("RGB", (64, 48)).save(path), "has 3 channels"),
    ],
)
def test_unusable_masks(pairs, write, message):
    write(pairs / "masks" / "train" / "a.png")
    with pytest.raises(ImageFileError, match=message):
        SegmentationDataset(find_masks(pairs).split("train"), ImageConfig())[0]


def test_folders_without_masks_are_named(tmp_path):
    with pytest.raises(DataError, match="looked for leftImg8bit"):
        find_masks(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_masks(tmp_path / "nowhere")


def test_detection_policies_are_refused(pairs):
    split = find_masks(pairs).split("train")
    for augment in (AugmentConfig(), AugmentConfig(policy="crop")):
        with pytest.raises(ConfigError, match="crop"):
            SegmentationDataset(split, ImageConfig(), augment)


def test_files_pair_by_their_whole_path(tmp_path):
    for part, value in (("a", 0), ("b", 1)):
        write_images(tmp_path / "images" / "train", {f"{part}/0001.png": (16, 16)})
        write_masks(tmp_path / "masks" / "train" / part, {"0001.png": (16, 16)}, (value,))
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    split = find_masks(tmp_path).split("train")
    assert [int(split.labels(index).max()) for index in range(2)] == [0, 1]
    write_images(tmp_path / "images" / "train", {"a/0001.jpg": (16, 16)})
    with pytest.raises(DataError, match="have the same name"):
        find_masks(tmp_path)


def test_named_classes_are_kept_by_name(pairs):
    split = find_masks(pairs, ("car", "sky")).split("train")
    assert split.classes == ("car", "sky")
    assert set(np.unique(split.labels(0))) == {0, 1, IGNORED}
    assert split.labels(0)[0, 0] == 1, "sky is the first stripe"
    with pytest.raises(DataError, match="has no class 'cat'"):
        find_masks(pairs, ("cat", "sky"))


def test_classes_name_values_where_nothing_else_does(pairs):
    (pairs / "classes.txt").unlink()
    assert find_masks(pairs, ("a", "b", "c")).split("train").classes == ("a", "b", "c")
