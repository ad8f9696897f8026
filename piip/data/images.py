"""Reading images from files, with errors that name the file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from piip.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
# PIL reports a broken PNG as SyntaxError, odd headers as ValueError, and absurd sizes as a bomb.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class ImageFileError(DataError):
    """An image file is missing, unreadable or not what the annotations say."""


def read_image(path: str | Path) -> Tensor:
    """Read an image as RGB with its EXIF orientation applied (HEADS 1.1).

    Args:
        path: A file of any format that Pillow reads; grey, palette, alpha, CMYK and 16-bit are converted.

    Returns:
        ``(3, h, w)`` uint8.

    Raises:
        ImageFileError: The file is missing, truncated or no image.
    """
    with _opened(path) as file:
        return to_tensor(file)


def open_picture(path: str | Path) -> Image.Image:
    """Return an image file as an RGB picture, its EXIF orientation applied.

    Raises:
        ImageFileError: The file is missing, truncated or no image.
    """
    with _opened(path) as file:
        return to_picture(file)


def picture_to_draw_on(
    image: Image.Image | None, path: str | Path | None, size: tuple[int, int]
) -> Image.Image:
    """Return the picture that a result of ``size`` (H, W) is drawn on: the one given, or that of the file.

    Raises:
        DataError: There is neither, or it is not the one that the result is of.
    """
    if image is None:
        if path is None:
            raise DataError("This result knows no image file; call plot(image=...).")
        image = open_picture(path)
    if (image.height, image.width) != tuple(size):
        raise DataError(
            f"The image to draw on is {image.height} x {image.width}, the result is of one of {size[0]} x "
            f"{size[1]} (height x width)."
        )
    return image


def read_size(path: str | Path, decode: bool = False) -> tuple[int, int]:
    """Return height and width of an image file, its EXIF orientation applied.

    Args:
        path: The file.
        decode: Also read all of it, at the lowest detail, to find out whether it is truncated.

    Raises:
        ImageFileError: The file is missing, no image or, with ``decode``, truncated.
    """
    with _opened(path) as file:
        width, height = file.size
        sideways = file.getexif().get(_ORIENTATION) in _SIDEWAYS
        if decode:
            file.draft("L", (1, 1))
            file.load()
    return (width, height) if sideways else (height, width)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a file, turning everything Pillow raises meanwhile into one kind of error."""
    try:
        with Image.open(path) as file:
            yield file
    except FileNotFoundError as error:
        raise ImageFileError(f"Image {path} does not exist.") from error
    except _UNREADABLE as error:
        raise ImageFileError(f"Image {path} cannot be read ({_reason(error)}); replace the file.") from error


def to_tensor(image: Image.Image) -> Tensor:
    """Return a PIL image as ``(3, h, w)`` uint8 RGB, its EXIF orientation applied."""
    return torch.from_numpy(np.array(to_picture(image))).permute(2, 0, 1).contiguous()


def to_picture(image: Image.Image) -> Image.Image:
    """Return a PIL image in RGB, its EXIF orientation applied."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a pixel; PIL would clip them at 255
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray((deep.clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _reason(error: BaseException) -> str:
    """Return what Pillow says in one line, without repeating the path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__
