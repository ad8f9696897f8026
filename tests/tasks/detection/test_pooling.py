"""Pooling from the right level."""

import torch
from torchvision.ops import roi_align

from piip.tasks.detection.pooling import RoIPooler, with_image_index

POOLER = RoIPooler((4, 8, 16, 32), 7)


def square(side):
    return torch.tensor([[0.0, 0.0, 0.0, side, side]])


def test_levels_double_from_112_pixels():
    sides = [1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0]
    levels = POOLER.levels(torch.cat([square(side) for side in sides]))
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_follow_the_strides():
    assert RoIPooler((8, 16), 7).levels(square(300.0)).item() == 1


def test_pools_from_its_level_and_carries_gradients():
    maps = [torch.randn(2, 3, 256 // s, 256 // s, requires_grad=True) for s in POOLER.strides]
    rois = torch.tensor([[1.0, 10, 20, 50, 70], [0, 0, 0, 250, 250], [1, 30, 3, 160, 150]])
    pooled = POOLER(maps, rois)
    for row, level in enumerate((0, 2, 1)):
        expected = roi_align(maps[level], rois[row : row + 1], 7, 1 / POOLER.strides[level], -1, True)
        torch.testing.assert_close(pooled[row : row + 1], expected)
    pooled.sum().backward()
    assert [bool(m.grad.abs().sum() > 0) for m in maps] == [True, True, True, False]


def test_no_rois():
    maps = [torch.randn(2, 3, 8, 8, requires_grad=True) for _ in POOLER.strides]
    rois = with_image_index([torch.zeros(0, 4), torch.zeros(0, 4)])
    pooled = POOLER(maps, rois)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


def test_rois_know_their_image():
    rois = with_image_index([torch.zeros(2, 4), torch.zeros(0, 4), torch.ones(1, 4)])
    assert rois[:, 0].tolist() == [0, 0, 2]
