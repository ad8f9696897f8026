"""What a segmentation says and shows."""

import numpy as np
import pytest
import torch
from PIL import Image

from piip.errors import DataError
from piip.tasks.segmentation import Segmentation

NAMES = ("sky", "road", "car")


@pytest.fixture
def seen(tmp_path):
    labels = torch.zeros(60, 80, dtype=torch.uint8)
    labels[30:] = 1
    labels[:6, :8] = 255
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "a.png")
    return Segmentation(labels, NAMES, tmp_path / "a.png")


def test_shares_and_words(seen):
    assert list(seen.shares().items()) == [("road", 0.5), ("sky", pytest.approx(0.49))]
    assert seen.summary() == "50% road, 49% sky"
    assert seen.record() == {"height": 60, "width": 80, "shares": {"road": 0.5, "sky": 0.49}}


def test_masks_keep_the_class_numbers(seen, tmp_path):
    seen.save_mask(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert (np.asarray(mask) == seen.labels.numpy()).all()
        assert len(mask.convert("RGB").getcolors()) == 3


def test_pictures_tint_classes_and_leave_the_rest(seen, tmp_path):
    picture = seen.plot(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").is_file()
    scale = 800 / 80
    pixels = [picture.getpixel((int(x * scale), int(y * scale))) for x, y in ((40, 50), (40, 20), (3, 2))]
    assert len(set(pixels)) == 3
    assert pixels[2] == (90, 90, 90)
    assert picture.width > 800, "a legend stands beside the image"


def test_an_image_is_needed_and_must_fit(seen):
    with pytest.raises(DataError, match="knows no image file"):
        Segmentation(seen.labels, NAMES).plot()
    with pytest.raises(DataError, match="60 x 80"):
        seen.plot(image=Image.new("RGB", (10, 10)))
