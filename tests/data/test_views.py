"""The views of an image in test-time augmentation."""

import math

import pytest
import torch

from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.transforms import prepare_image
from piip.data.views import Views
from piip.errors import ConfigError

CONFIG = ImageConfig(scale=(97, 61))


def noise(*size):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_one_view_is_the_image_as_ever():
    pixels = noise(40, 70)
    views = Views(pixels, CONFIG, AugmentedTest())
    (view,) = views
    assert len(views) == 1
    assert not view.flipped
    assert torch.equal(view.image, prepare_image(pixels, CONFIG))
    assert view.meta.original_size == views.original_size == (40, 70)


@pytest.mark.parametrize("resize", ["fast", "exact", "antialias"])
def test_scales_and_mirrored_images(resize):
    pixels, config = noise(40, 70), CONFIG.replace(resize=resize)
    views = Views(pixels, config, AugmentedTest((0.5, 1.25), flip=True))
    # 97 x 61 times 0.5 is 49 x 31 and times 1.25 is 121 x 76, rounded up from the half; the image has 4 : 7.
    sizes = [(28, 49), (28, 49), (69, 121), (69, 121)]
    assert [view.meta.size for view in views] == [tuple(view.image.shape[1:]) for view in views] == sizes
    assert [view.flipped for view in views] == [False, True, False, True]
    assert len(views) == 4
    for view, factor in zip(views, (0.5, 0.5, 1.25, 1.25), strict=True):
        seen = pixels.flip(-1) if view.flipped else pixels
        assert torch.equal(view.image, prepare_image(seen, config.scaled(factor)))


@pytest.mark.parametrize("resize", ["fast", "exact", "antialias"])
def test_a_mirrored_image_has_the_same_views(resize):
    config, test = CONFIG.replace(resize=resize), AugmentedTest((0.7, 1.0), flip=True)
    first, second = (list(Views(pixels, config, test)) for pixels in (noise(40, 71), noise(40, 71).flip(-1)))
    for one, other in zip(first, [second[i] for i in (1, 0, 3, 2)], strict=True):
        assert torch.equal(one.image, other.image)
        assert one.flipped != other.flipped


def test_scaled_sides_are_rounded_and_never_vanish():
    assert ImageConfig(scale=(1333, 800)).scaled(1.0) == ImageConfig(scale=(1333, 800))
    assert ImageConfig(scale=(1333, 801)).scaled(0.5).scale == (667, 401)
    assert CONFIG.scaled(1e-6).scale == (1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": ()}, "test.scales is empty; give at least one factor, such as 1.0."),
        ({"scales": (1.0, 0.0)}, "test.scales is (1.0, 0.0); give a number above 0."),
        ({"scales": (-1.0,)}, "test.scales is (-1.0,); give a number above 0."),
        ({"scales": (math.nan,)}, "test.scales is (nan,); give a list with a number each."),
        ({"scales": (math.inf,)}, "test.scales is (inf,); give a list with a number each."),
        ({"scales": 1.0}, "test.scales is 1.0; give a list with a number each."),
        ({"flip": 0.5}, "test.flip is 0.5; give true or false."),
    ],
)
def test_impossible_tests_are_refused_in_a_sentence(values, message):
    with pytest.raises(ConfigError) as caught:
        AugmentedTest(**values)
    assert str(caught.value) == message
