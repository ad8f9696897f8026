"""Windows over large images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from piip.tasks.segmentation.inference import slide, windows


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.data())
def test_windows_cover_every_pixel_and_stay_inside(height, width, crop, data):
    stride = data.draw(st.integers(1, crop))
    visits = torch.zeros(height, width)
    for rows, columns in windows((height, width), crop, stride):
        assert 0 <= rows.start < rows.stop <= max(height, crop)
        assert 0 <= columns.start < columns.stop <= max(width, crop)
        visits[rows, columns] += 1
    assert visits.min() >= 1


@given(st.integers(5, 60), st.integers(5, 60), st.integers(4, 30))
def test_a_function_of_single_pixels_is_the_same_in_windows(height, width, crop):
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    logits = slide(lambda window: window * 2 + 1, image, crop, max(1, crop * 2 // 3))
    assert torch.allclose(logits, image * 2 + 1, atol=1e-6)


def test_overlaps_are_averaged():
    values = iter([1.0, 3.0])
    logits = slide(lambda w: torch.full((1, 1, *w.shape[-2:]), next(values)), torch.zeros(1, 3, 4, 6), 4, 2)
    assert logits[0, 0, 0].tolist() == pytest.approx([1, 1, 2, 2, 3, 3])
