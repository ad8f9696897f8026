"""The image pyramid: the same image at every branch's size (paper section 3.1; SPEC 2)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def image_pyramid(image: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """Return the image at the size of every branch.

    Args:
        image: (B, 3, H, W).
        scales: Side of every branch's image relative to the input's, at most 1.

    Returns:
        One image per branch, (B, 3, floor(H * scale), floor(W * scale)), in the dtype of ``image``. Shrinking is
        bilinear without antialiasing and uses the given factor, not the ratio of the rounded sizes.
    """
    return [image if scale >= 1 else _shrink(image, scale) for scale in scales]


def pad_to_multiple(image: Tensor, divisor: int) -> Tensor:
    """Pad an image (..., H, W) with zeros at the bottom and right to multiples of ``divisor`` pixels."""
    height, width = image.shape[-2:]
    bottom, right = -height % divisor, -width % divisor
    # A compiled network pads by nothing rather than asking, which would take a graph for either answer.
    if torch.compiler.is_compiling() or bottom or right:
        return F.pad(image, (0, right, 0, bottom))
    return image


def crop_to_image(feature: Tensor, padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """Crop a map of a padded image to the cells that touch the true image.

    Args:
        feature: (B, D, h, w) over the padded image.
        padded: Height and width of the padded image in pixels.
        size: Height and width of the true image in pixels.
    """
    height, width = (
        -(-true * cells // whole) for true, cells, whole in zip(size, feature.shape[-2:], padded, strict=True)
    )
    return feature[..., :height, :width]


def _shrink(image: Tensor, scale: float) -> Tensor:
    # The sampling grid is computed from the image's dtype: below float32 it would be off by pixels, and above it
    # it would not be the original's.
    if any(math.floor(side * scale) < math.floor(side * scale + 1e-6) for side in image.shape[-2:]):
        scale *= 1 + 1e-9  # a whole size must not lose a pixel to the rounding of the factor
    resized = F.interpolate(image.float(), scale_factor=scale, mode="bilinear")
    return resized.to(image.dtype)
