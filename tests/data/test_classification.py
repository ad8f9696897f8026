"""Folders and tables of classes, and what the network gets of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from piip.data.classification import ClassificationDataset, collate, find_classes
from piip.data.images import ImageFileError
from piip.data.settings import AugmentConfig, ImageConfig
from piip.errors import ConfigError, DataError
from tests.data.builders import write_images

SQUARE = ImageConfig(scale=(32, 32))
AUGMENT = AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.3)


@pytest.fixture
def folders(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, {"a.png": (40, 60), "b.jpg": (50, 36)})
    return tmp_path


def test_a_folder_per_class(folders):
    split = find_classes(folders, "train")
    assert split.classes == ("cat", "dog")
    assert split.labels == (0, 0, 1, 1)
    image, label, meta = ClassificationDataset(split, SQUARE)[3]
    assert image.shape == (3, 32, 32)
    assert label == 1
    assert meta.original_size == (50, 36)


def test_a_table(folders):
    (folders / "val.csv").write_text("path,label\nval/cat/a.png,cat\nval/dog/b.jpg, dog\n")
    split = find_classes(folders, "val", ("dog", "cat"))
    assert split.labels == (1, 0)
    assert split.images[1].is_file()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\nx,cat\n", "it needs one of file, path"),
        ("path,label\nval/cat/a.png,\n", "line 2: the file or the class is missing"),
        ("path,label\n", "has no images"),
        ("path,label\nx.png,cat\n", "has one class"),
    ],
)
def test_unusable_tables(folders, table, message):
    (folders / "val.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        find_classes(folders, "val")


def test_unusable_folders(folders, tmp_path):
    with pytest.raises(DataError, match="has no test split"):
        find_classes(folders, "test")
    with pytest.raises(DataError, match="does not exist"):
        find_classes(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="the class 'dog', which is none of cat, cow"):
        find_classes(folders, "val", ("cat", "cow"))


def test_augmentation_is_random_and_repeatable(folders):
    dataset = ClassificationDataset(find_classes(folders, "train"), SQUARE, AUGMENT, seed=5)
    images, labels, _ = collate([dataset[(0, 0)], dataset[(0, 2)]])
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [0, 1]
    assert torch.equal(dataset[(0, 0)][0], dataset[(0, 0)][0])
    assert not torch.equal(dataset[(0, 0)][0], dataset[(1, 0)][0])


def test_the_middle_is_kept_and_normalised(tmp_path):
    """Left and right quarters are white, the middle is black: a centre crop of a wide image sees black alone."""
    pixels = np.full((32, 64, 3), 255, np.uint8)
    pixels[:, 14:50] = 0
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "val" / name / "x.png")
    image, _, _ = ClassificationDataset(find_classes(tmp_path, "val"), SQUARE)[0]
    black = (0 - torch.tensor(SQUARE.mean)) / torch.tensor(SQUARE.std)
    assert torch.allclose(image.mean((1, 2)), black, atol=0.02)


def test_broken_images_and_shapes_are_named(folders):
    (folders / "train" / "cat" / "a.png").write_bytes(b"no image")
    split = find_classes(folders, "train")
    with pytest.raises(ImageFileError, match=r"a\.png cannot be read"):
        ClassificationDataset(split, SQUARE)[0]
    with pytest.raises(ConfigError, match="classifiers read squares"):
        ClassificationDataset(split, ImageConfig(scale=(64, 32)))
