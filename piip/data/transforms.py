"""Preparing an image for the network, and the released models' training augmentations (HEADS 1 and 9).

A sample is a dict of tv_tensors: ``image`` (3, h, w) uint8, ``boxes`` xyxy in pixels of that image,
``labels`` and, where wanted, ``masks`` (N, h, w). Any ``torchvision.transforms.v2`` transform fits in.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from piip.data.geometry import scale_factor
from piip.data.resize import keep_ratio_size, resize_image, resize_mask
from piip.data.settings import AugmentConfig, ImageConfig, Method
from piip.errors import ConfigError

Sample = dict[str, Any]
Augment = Callable[[Sample], Sample]

_UNLIMITED = 10**9


def prepare_image(image: Tensor, config: ImageConfig) -> Tensor:
    """Resize and normalise one image as in testing.

    Args:
        image: ``(3, h, w)`` uint8 RGB.
        config: Scale, resize method, mean and std.

    Returns:
        ``(3, new_h, new_w)`` float32, not padded.
    """
    size = keep_ratio_size(image.shape[-2], image.shape[-1], config.scale)
    return normalise(resize_image(image, size, config.resize), config)


def normalise(image: Tensor, config: ImageConfig) -> Tensor:
    """Return ``(image - mean) / std`` in float32."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (config.mean, config.std)
    )
    return image.to(torch.float32).sub_(mean).div_(std)


def evaluation_transform(image: ImageConfig) -> Augment:
    """Return the resize of the test pipeline, as a transform of samples."""
    return RandomResize([image.scale], image.resize)


def training_transform(config: AugmentConfig, image: ImageConfig) -> Augment:
    """Build the random transform of training samples; normalisation is not part of it.

    Args:
        config: What to draw.
        image: Its ``resize`` method is used, and its ``scale`` where the augmentation names none.

    Raises:
        ConfigError: The policy is one for segmenters.
    """
    if config.policy == "crop":
        raise ConfigError("augment.policy crop is for segmenters; use resize or detr with a detector.")
    steps: list[Augment] = [v2.RandomHorizontalFlip(config.flip)]
    if config.policy == "detr":
        steps.append(_detr_resize(config.factor, image.resize))
    else:
        steps.append(RandomResize(config.scales or (image.scale,), image.resize))
    if config.crop is not None:
        steps.append(RandomCrop(config.crop, config.crop))
    return partial(_run, (*steps, drop_empty))


def _detr_resize(factor: float, method: Method) -> v2.Transform:
    """Return a resize to a random short side, directly or after enlarging and cropping (HEADS 9)."""
    long_side = int(factor * 1333)
    resize = RandomResize([(long_side, int(factor * side)) for side in range(480, 801, 32)], method)
    before = RandomResize([(_UNLIMITED, int(factor * side)) for side in (400, 500, 600)], method)
    crop = RandomCrop(int(factor * 384), int(factor * 600))
    return v2.RandomChoice([resize, v2.Compose([before, crop, resize])])


def _run(steps: Sequence[Augment], sample: Sample) -> Sample:
    for step in steps:
        sample = step(sample)
    return sample


class RandomResize(v2.Transform):
    """Resize into one of several (long, short) limits, drawn uniformly; boxes are clipped to the image."""

    def __init__(self, scales: Sequence[tuple[int, int]], method: Method = "fast") -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.method = method

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the scale and compute the new size."""
        index = int(torch.randint(len(self.scales), ())) if len(self.scales) > 1 else 0
        return {"size": keep_ratio_size(*_image_size(flat_inputs), self.scales[index])}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one part of a sample: by arithmetic for the image, nearest for masks, scaling for boxes."""
        size = params["size"]
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.Image(resize_image(inpt.as_subclass(Tensor), size, self.method))
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.Mask(resize_mask(inpt.as_subclass(Tensor), size))
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            factor = torch.tensor(scale_factor(inpt.canvas_size, size) * 2, dtype=torch.float32)
            return clip_boxes(inpt.as_subclass(Tensor) * factor, size)
        return inpt


class RandomCrop(v2.Transform):
    """Crop at a random place, each side drawn between ``smallest`` and ``largest`` but at most the image."""

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__()
        self.smallest = smallest
        self.largest = largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw size and place of the crop."""
        sides = _image_size(flat_inputs)
        height, width = (self._draw(min(side, self.smallest), min(side, self.largest)) for side in sides)
        top, left = (self._draw(0, side - kept) for side, kept in zip(sides, (height, width), strict=True))
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop one part of a sample; torchvision clips the boxes."""
        return tvf.crop(inpt, **params)

    @staticmethod
    def _draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, ()))


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Return ``(N, 4)`` xyxy boxes clipped to an image of ``size`` (height, width)."""
    limit = torch.tensor([size[1], size[0]] * 2, dtype=boxes.dtype)
    clipped = torch.minimum(boxes.clamp(min=0), limit)
    return tv_tensors.BoundingBoxes(clipped, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)


def drop_empty(sample: Sample) -> Sample:
    """Leave out the objects whose box has no area any more."""
    boxes = sample["boxes"]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1).as_subclass(Tensor)
    if bool(kept.all()):
        return sample
    objects = {key: _like(value[kept], value) for key, value in sample.items() if key != "image"}
    return {**sample, **objects}


@contextlib.contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from a seed made of ``entropy``, and restore the state afterwards."""
    state = torch.get_rng_state()
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would also reset the GPU's state
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _like(values: Tensor, source: Tensor) -> Tensor:
    """Give ``values`` the kind of ``source``: indexing turns a tv_tensor into a plain one."""
    return tv_tensors.wrap(values, like=source) if isinstance(source, tv_tensors.TVTensor) else values


def _image_size(flat_inputs: list[Any]) -> tuple[int, int]:
    image = next(value for value in flat_inputs if isinstance(value, tv_tensors.Image))
    return image.shape[-2], image.shape[-1]
