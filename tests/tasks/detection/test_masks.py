"""Masks: pasting and compressing against the plain whole-image way."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from piip.tasks.detection.config import RCNNConfig
from piip.tasks.detection.masks import MaskHead, compress, decode_masks, encode_window, mask_targets

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@given(st.data())
def test_windows_compress_as_pycocotools_compresses_whole_images(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    shape = data.draw(st.integers(0, height - top)), data.draw(st.integers(0, width - left))
    window = data.draw(arrays(bool, shape))
    full = np.zeros((height, width), np.uint8, order="F")
    full[top : top + shape[0], left : left + shape[1]] = window
    ours = encode_window(window, (top, left), (height, width))
    assert ours["counts"] == coco_mask.encode(full)["counts"].decode()
    assert ours["size"] == [height, width]


@given(st.integers(0, 2**32 - 1))
def test_window_holds_all_of_the_mask(seed):
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(28, 28, generator=generator)
    corner = torch.rand(2, generator=generator) * 60 - 15
    box = torch.cat([corner, corner + 2 + torch.rand(2, generator=generator) * 50])
    y = (torch.arange(40) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    x = (torch.arange(50) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    grid = torch.stack([x.expand(40, -1), y[:, None].expand(-1, 50)], -1)
    expected = F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0] >= 0.5
    ours = decode_masks(compress(probability[None], box[None], (40, 50), 0.5), (40, 50))[0]
    assert (ours == expected.numpy()).all()


@pytest.mark.parametrize("box", [[-30.0, -30.0, -10.0, -10.0], [60.0, 5.0, 70.0, 9.0]])
def test_a_box_outside_the_image_has_an_empty_mask(box):
    masks = compress(torch.ones(1, 28, 28), torch.tensor([box]), (40, 50), 0.5)
    assert decode_masks(masks, (40, 50)).sum() == 0


def test_a_box_without_width_is_no_failure():
    masks = compress(torch.ones(1, 28, 28), torch.tensor([[10.5, 5.0, 10.5, 15.0]]), (40, 50), 0.5)
    assert decode_masks(masks, (40, 50)).any()


def test_whole_images_are_never_filled():
    size, count = (1000, 1000), 100
    boxes = torch.tensor([[450.0, 450.0, 550.0, 550.0]]).repeat(count, 1)
    tracemalloc.start()
    try:
        masks = compress(torch.ones(count, 28, 28), boxes, size, 0.5)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(type(mask["counts"]) is str for mask in masks)
    assert kept < count * 2000  # bytes; each mask has a million pixels
    assert peak < 1_000_000


def test_no_masks():
    assert compress(torch.zeros(0, 28, 28), torch.zeros(0, 4), (4, 5), 0.5) == []
    assert decode_masks([], (4, 5)).shape == (0, 4, 5)


def test_targets_are_the_part_of_the_mask_in_the_box():
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[1, :16] = 1
    boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0], [0.0, 0.0, 16.0, 16.0], [0.0, 16.0, 32.0, 32.0]])
    targets = mask_targets(boxes, torch.tensor([1, 1, 1]), masks, (64, 64), 4)
    assert targets[0].tolist() == [[1] * 4] * 2 + [[0] * 4] * 2
    assert targets[1].min() == 1
    assert targets[2].max() == 0


def test_loss_is_the_mean_over_the_channel_of_the_class():
    config = RCNNConfig(classes=("a", "b"), in_channels=(8,) * 4, fpn_channels=8, mask_channels=8)
    head = MaskHead(config)
    logits = torch.randn(3, 2, 28, 28)
    labels, targets = torch.tensor([0, 1, 1]), torch.randint(0, 2, (3, 28, 28)).float()
    own = torch.stack([logits[0, 0], logits[1, 1], logits[2, 1]])
    expected = F.binary_cross_entropy_with_logits(own, targets)
    torch.testing.assert_close(head.loss(logits, labels, targets)["loss_mask"], expected)
