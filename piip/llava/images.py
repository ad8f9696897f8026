"""Preparing images for a PIIP-LLaVA: as released, or whole and undistorted."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.processing_utils import ImagesKwargs

from piip.data.settings import IMAGENET_MEAN, IMAGENET_STD

MEAN = tuple(value / 255 for value in IMAGENET_MEAN)
STD = tuple(value / 255 for value in IMAGENET_STD)


def image_processor(side: int) -> LlavaImageProcessor:
    """Return the image processor of the released models for images of ``side`` pixels.

    Images are padded to squares with the mean colour, resized bicubically so that the shortest side fits, cropped
    to their centre, and normalised as for ImageNet, also for CLIP (SPEC 9).
    """
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(MEAN),
        image_std=list(STD),
    )


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


class WholeImageProcessor(TorchvisionBackend):
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
