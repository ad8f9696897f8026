"""Resizing of images and masks, bit for bit as the released models saw them (HEADS 1 and 9)."""

from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from piip.data.settings import Method
from piip.errors import ConfigError, DataError, nearest

_ONE = 2048  # 11-bit fixed-point weights


def keep_ratio_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size of the same aspect ratio that fits ``scale`` (HEADS 1.2).

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Limits of the long and of the short side; their order does not matter.

    Returns:
        New height and width in pixels, at least 1 each.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: Tensor, size: tuple[int, int], method: Method = "fast") -> Tensor:
    """Resize a uint8 image bilinearly.

    Args:
        image: ``(3, h, w)`` uint8.
        size: New height and width.
        method: ``exact`` is the fixed-point arithmetic of the released models, without antialiasing;
            ``fast`` is torchvision's, at most one grey level away from it; ``antialias`` filters before
            shrinking, which no released model has seen.

    Returns:
        ``(3, *size)`` uint8.

    Raises:
        ConfigError: Unknown method.
        DataError: The image is not uint8 or has no pixels.
    """
    if method not in get_args(Method):
        raise ConfigError(f"Unknown resize method {method!r}. {nearest(method, get_args(Method))}")
    if image.dtype != torch.uint8 or image.ndim != 3 or 0 in image.shape:
        raise DataError(
            f"An image to resize must be uint8 (channels, height, width), got {image.dtype} of shape "
            f"{tuple(image.shape)}; convert it first."
        )
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if method == "exact":
        return _resize_exact(image, size)
    return tvf.resize(image, list(size), InterpolationMode.BILINEAR, antialias=method == "antialias")


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks by the nearest rule of the released models, ``source = floor(i * n_in / n_out)``.

    Args:
        mask: ``(..., h, w)``, any dtype.
        size: New height and width.

    Returns:
        ``(..., *size)`` of the same dtype.
    """
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    rows, columns = (torch.arange(new) * old // new for old, new in zip(mask.shape[-2:], size, strict=True))
    return mask.index_select(-2, rows).index_select(-1, columns)


def _resize_exact(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(c, h, w)`` uint8 with int32 arithmetic: horizontally first, then vertically."""
    height, width = image.shape[-2:]
    left, fraction = _taps(width, size[1])
    outside = (left < 0) | (left >= width - 1)
    near, far = _weights(np.where(outside, np.float32(0), fraction))
    first, second = _pair(left, width)
    pixels = image.to(torch.int32)
    rows = pixels.index_select(2, first).mul_(near)
    rows = rows.add_(pixels.index_select(2, second).mul_(far)).bitwise_right_shift_(4)

    # Unlike the columns, rows outside the image keep their fraction: both of their taps are the edge row.
    top, fraction = _taps(height, size[0])
    near, far = (weight[:, None] for weight in _weights(fraction))
    first, second = _pair(top, height)
    upper = rows.index_select(1, first).mul_(near).bitwise_right_shift_(16)
    lower = rows.index_select(1, second).mul_(far).bitwise_right_shift_(16)
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def _taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first source index of every output index and the float32 distance from it."""
    centre = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    start = np.floor(centre)
    return start.astype(np.int64), centre - start


def _weights(fraction: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Return both taps' weights in 1/2048, rounded half to even as int32."""
    one = np.float32(1)
    scale = np.float32(_ONE)
    near, far = np.rint((one - fraction) * scale), np.rint(fraction * scale)
    return torch.from_numpy(near.astype(np.int32)), torch.from_numpy(far.astype(np.int32))


def _pair(start: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the two taps, clamped to the image."""
    return tuple(torch.from_numpy((start + step).clip(0, length - 1)) for step in (0, 1))  # type: ignore[return-value]
