"""Segmenting images that are larger than what a network was trained on (HEADS.md section 3)."""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def slide(segment: Callable[[Tensor], Tensor], image: Tensor, crop: int, stride: int) -> Tensor:
    """Return the logits of an image, averaged over windows where these overlap.

    Args:
        segment: Returns logits (B, C, h, w) of a window (B, 3, h, w).
        image: (B, 3, H, W).
        crop: Side of the windows in pixels; a smaller image is one window.
        stride: Pixels from one window to the next; the last one is moved back into the image.

    Returns:
        (B, C, H, W).
    """
    total: Tensor | None = None
    visits = image.new_zeros(image.shape[-2:])
    for rows, columns in windows((image.shape[-2], image.shape[-1]), crop, stride):
        logits = segment(image[..., rows, columns])
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *image.shape[-2:])
        total[..., rows, columns] += logits
        visits[rows, columns] += 1
    assert total is not None
    return total / visits


def windows(size: Size, crop: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of all windows of an image of ``size`` (H, W)."""
    tops, lefts = (_starts(side, crop, stride) for side in size)
    for top in tops:
        for left in lefts:
            yield slice(top, top + crop), slice(left, left + crop)


def _starts(side: int, crop: int, stride: int) -> list[int]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(number * stride, side - crop), 0) for number in range(count)]


def resize_logits(logits: Tensor, size: Size) -> Tensor:
    """Return logits (B, C, h, w) resized bilinearly to ``size`` (H, W)."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
