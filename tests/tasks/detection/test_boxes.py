"""Box arithmetic against torchvision and its own inverse."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder
from torchvision.ops import box_iou

from piip.tasks.detection.boxes import MAX_LOG_RATIO, BoxCoder, clip, iou

STDS = (0.1, 0.1, 0.2, 0.2)


def random_boxes(count, seed=0, extent=200.0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=generator) * extent], 1)


@given(st.integers(0, 2**32 - 1))
def test_decoding_undoes_encoding(seed):
    references, boxes = random_boxes(20, seed), random_boxes(20, seed + 1)
    size = references[:, 2:] - references[:, :2]
    kept = (((boxes[:, 2:] - boxes[:, :2]) / size).log().abs() < MAX_LOG_RATIO).all(1)
    references, boxes = references[kept], boxes[kept]
    coder = BoxCoder(STDS)
    torch.testing.assert_close(
        coder.decode(references, coder.encode(references, boxes)), boxes, rtol=0, atol=1e-2
    )


def test_same_as_torchvision_away_from_its_clamp():
    references, boxes = random_boxes(50), random_boxes(50, 1)
    ours, theirs = BoxCoder(STDS), TorchvisionCoder(tuple(1 / s for s in STDS))
    torch.testing.assert_close(
        ours.encode(references, boxes), theirs.encode_single(boxes, references), rtol=1e-4, atol=1e-4
    )
    deltas = torch.randn(50, 4)
    torch.testing.assert_close(
        ours.decode(references, deltas), theirs.decode_single(deltas, references), rtol=1e-4, atol=1e-3
    )


def test_sides_change_by_a_limited_factor_both_ways():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    for sign in (-1, 1):
        decoded = BoxCoder().decode(box, torch.tensor([[0.0, 0.0, sign * 50.0, sign * 50.0]]))
        side = decoded[0, 2] - decoded[0, 0]
        torch.testing.assert_close(side, torch.tensor(10 * (1000 / 16) ** sign), rtol=1e-4, atol=1e-4)


def test_overlap_is_torchvisions_and_0_without_area():
    a, b = random_boxes(30), random_boxes(20, 1)
    torch.testing.assert_close(iou(a, b), box_iou(a, b))
    point = torch.zeros(1, 4)
    assert iou(point, point).item() == 0


def test_clip_limits_each_image_to_its_own_size():
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 500.0]]).expand(2, 3, 4)
    clipped = clip(boxes, torch.tensor([[100, 200], [30, 40]])[:, None])
    assert clipped[0, 2].tolist() == [0, 0, 200, 100]
    assert clipped[1, 0].tolist() == [0, 0, 40, 30]
