"""Preparing images for a PIIP-LLaVA: as released, or whole and undistorted."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.processing_utils import ImagesKwargs

from piip.data.images import open_picture, to_picture
from piip.data.settings import IMAGENET_MEAN, IMAGENET_STD

MEAN = tuple(value / 255 for value in IMAGENET_MEAN)
STD = tuple(value / 255 for value in IMAGENET_STD)

_LONG = 4
"""An image is long if the square around it has over so many times its pixels and so many times the model's side."""


def image_processor(side: int) -> "SquareImageProcessor":
    """Return the image processor of the released models for images of ``side`` pixels.

    Images are padded to squares with the mean colour, resized bicubically so that the shortest side fits, cropped
    to their centre, and normalised as for ImageNet, also for CLIP (SPEC 9).
    """
    return SquareImageProcessor(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(MEAN),
        image_std=list(STD),
    )


class PictureReader(TorchvisionBackend):
    """Reads files and pictures as piip does everywhere; transformers alone clips or misreads some."""

    def fetch_images(self, images: Any) -> Any:
        """Return images, nested in lists as they were given; files and pictures become RGB pictures.

        Raises:
            ImageFileError: A file is truncated or no image.
        """
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, Image.Image):
            return to_picture(images)
        if isinstance(images, str) and _is_file(images):
            return open_picture(images)
        fetched = super().fetch_images(images)
        # Addresses are read by torch, which alone has whole numbers of 16 bits.
        return (fetched.int() >> 8).byte() if getattr(fetched, "dtype", None) == torch.uint16 else fetched


class SquareImageProcessor(PictureReader, LlavaImageProcessor):
    """LLaVA's image processor, for which long images need no more memory than others."""

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Tensor],
        do_resize: bool,
        do_pad: bool,
        size: SizeDict,
        resample: Any,
        image_mean: Any,
        **options: Any,
    ) -> BatchFeature:
        if do_resize and do_pad and size.shortest_edge:
            colour = [int(value * 255) for value in image_mean]
            images = [self._square_if_long(image, size.shortest_edge, resample, colour) for image in images]
        return super()._preprocess(
            images,
            do_resize=do_resize,
            do_pad=do_pad,
            size=size,
            resample=resample,
            image_mean=image_mean,
            **options,
        )

    def _square_if_long(self, image: Tensor, side: int, resample: Any, colour: list[int]) -> Tensor:
        """Return a long image (3, H, W) as a square of ``side`` pixels, others as they are.

        It is padded and resized in one direction after the other, so the square around it, which may take
        gigabytes, is never there. Up to rounding, the pixels are the same.
        """
        height, width = image.shape[-2:]
        longest, shortest = max(height, width), min(height, width)
        if longest <= _LONG * max(shortest, side):
            return image
        wide = width == longest
        first = SizeDict(height=height, width=side) if wide else SizeDict(height=side, width=width)
        before = (longest - shortest) // 2
        after = longest - shortest - before
        padding = [0, before, 0, after] if wide else [before, 0, after, 0]
        padded = tv.pad(self.resize(image, first, resample), padding, fill=colour)
        return self.resize(padded, SizeDict(height=side, width=side), resample)


class WholeImageKwargs(ImagesKwargs, total=False):
    """Options of `WholeImageProcessor` beside those of transformers.

    Attributes:
        side: Pixels of the longer side.
        size_multiple: Both sides are multiples of it.
        smallest_side: Fewest pixels of the shorter side.
    """

    side: int
    size_multiple: int
    smallest_side: int


class WholeImageProcessor(PictureReader):
    """Keeps the aspect ratio of images, for models that are trained so.

    The longer side becomes ``side``, the shorter one follows, rounded to a multiple that all branches divide into
    whole tokens. The result has ``image_sizes`` (B, 2), height and width of every image, and ``pixel_values``
    (B, 3, H, W), where smaller images are filled up with zeros at the bottom and right, which the model does not
    see.

    Args:
        options: `WholeImageKwargs` and those of transformers' image processors.
    """

    valid_kwargs = WholeImageKwargs
    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    image_mean = MEAN
    image_std = STD
    size = None
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    side = 512
    size_multiple = 32
    smallest_side = 32

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width that an image of some size gets."""
        return whole_size((height, width), self.side, self.size_multiple, self.smallest_side)

    def _validate_preprocess_kwargs(self, **options: Any) -> None:  # type: ignore[override]
        """Check what transformers checks, but for its own kinds of sizes, which are not used here."""
        super()._validate_preprocess_kwargs(**options | {"do_resize": False})

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Tensor],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        resample: Any,
        return_tensors: Any,
        side: int,
        size_multiple: int,
        smallest_side: int,
        disable_grouping: bool | None = None,
        **options: Any,
    ) -> BatchFeature:
        grouped, places = group_images_by_shape(images, disable_grouping=disable_grouping)
        ready = {}
        for shape, stack in grouped.items():
            size = (stack.shape[-2], stack.shape[-1])
            height, width = whole_size(size, side, size_multiple, smallest_side)
            resized = self.resize(stack, SizeDict(height=height, width=width), resample)
            ready[shape] = self.rescale_and_normalize(
                resized, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        pixels = reorder_images(ready, places)
        sizes = [tuple(image.shape[-2:]) for image in pixels]
        data = {"pixel_values": stack_images(list(pixels)), "image_sizes": torch.tensor(sizes)}
        return BatchFeature(data, tensor_type=return_tensors)


def whole_size(size: tuple[int, int], side: int, multiple: int, smallest: int) -> tuple[int, int]:
    """Return the height and width of an image that keeps its aspect ratio as far as whole tokens allow.

    Args:
        size: Its height and width in pixels.
        side: Pixels of the longer side of the result.
        multiple: Both sides of the result are multiples of it.
        smallest: Fewest pixels of a side.
    """
    factor = side / max(size)
    height, width = (max(round(pixels * factor / multiple) * multiple, smallest) for pixels in size)
    return height, width


def stack_images(images: list[Tensor]) -> Tensor:
    """Return images (3, H_i, W_i) as one tensor (B, 3, H, W), smaller ones filled up at the bottom and right."""
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    return torch.stack(
        [tv.pad(image, [0, 0, width - image.shape[-1], height - image.shape[-2]]) for image in images]
    )


def _is_file(name: str) -> bool:
    """Return whether a text is the name of a file, and not an address or an image itself."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # an image as text is no name: far too long
        return False
