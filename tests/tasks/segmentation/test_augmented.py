"""Segmentation in several views: probabilities are averaged at the size of the image."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.views import Views
from piip.tasks.segmentation import segment_views
from piip.tasks.segmentation.augmented import mean_probabilities
from tests.tasks.segmentation.test_segmenter import tiny_segmenter

CONFIG = ImageConfig(scale=(96, 80))
ALL = AugmentedTest((0.5, 1.0, 1.25), flip=True)
SIZE = (50, 70)


@pytest.fixture(params=["slide", "whole"])
def model(request):
    return tiny_segmenter(inference=request.param).eval()


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)


@torch.inference_mode()
def test_the_average_is_that_of_a_plain_loop(model, pixels):
    mean, std = (torch.tensor(values)[:, None, None] for values in (CONFIG.mean, CONFIG.std))
    total = torch.zeros(3, *SIZE)
    # 96 x 80 times the factors is 48 x 40, 96 x 80, 120 x 100; 50 x 70 fits these as wide as they are.
    for height, width in ((34, 48), (69, 96), (86, 120)):
        for mirrored in (False, True):
            image = tvf.hflip(pixels) if mirrored else pixels
            image = (tvf.resize(image, [height, width], antialias=False).float() - mean) / std
            logits = F.interpolate(model(image[None]), SIZE, mode="bilinear")
            probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
            total += tvf.hflip(probabilities[0]) if mirrored else probabilities[0]
    views = Views(pixels, CONFIG, ALL)
    found = mean_probabilities(model, views)
    torch.testing.assert_close(found, total / 6)
    torch.testing.assert_close(found.sum(0), torch.ones(SIZE))
    assert torch.equal(segment_views(model, views), found.argmax(0))


@torch.inference_mode()
def test_what_is_found_in_a_mirrored_image_is_mirrored(model, pixels):
    found, mirrored = (mean_probabilities(model, Views(p, CONFIG, ALL)) for p in (pixels, pixels.flip(-1)))
    torch.testing.assert_close(found.flip(-1), mirrored)


@torch.inference_mode()
def test_one_view_is_the_plain_way(model, pixels):
    views = Views(pixels, CONFIG, AugmentedTest())
    plain = model.segment(next(iter(views)).image[None], SIZE)[0].argmax(0)
    assert torch.equal(segment_views(model, views), plain)
