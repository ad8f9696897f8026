"""A copy of a model for inference, with whatever is constant multiplied into the weights beforehand."""

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from piip.errors import ConfigError
from piip.network import PIIP

Model = TypeVar("Model", bound=nn.Module)


@runtime_checkable
class Foldable(Protocol):
    """A module that knows which of its constants its weights can take over."""

    def fold(self) -> None:
        """Fold them, in place; the module computes the same function, but must not be trained or saved."""


def optimize(model: Model, dtype: torch.dtype | None = None) -> Model:
    """Return a copy of a model that computes the same with less work; the model itself stays as it is.

    Layer scales go into the linear layers before them, which also compute the activations after them, the gates of
    interactions into their output projections, and a detector's lateral 1x1 convolutions into the transposed
    convolutions of the simple feature pyramid. Exact but for rounding. The copy is in evaluation mode and for
    inference only: train and save the original.

    Args:
        model: A `PIIP` or a model around one.
        dtype: Floating-point type of the networks' weights and features, such as ``torch.bfloat16``; what is around
            them (heads) keeps its own. Images are given in float32 as before.

    Raises:
        ConfigError: There is no `PIIP` in the model, or the dtype is not a floating-point one.
    """
    if not any(isinstance(module, PIIP) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} contains no PIIP; give a network or a model around one.")
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"{dtype} is no floating-point type; give torch.bfloat16, for instance.")
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for module in list(copied.modules()):
            if isinstance(module, Foldable):
                module.fold()
    if dtype is not None:
        for module in copied.modules():
            if isinstance(module, PIIP):
                module.to(dtype).image_dtype = dtype
    return copied
