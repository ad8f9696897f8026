"""Modules without memory for their weights: to look at a model's shape, or to load weights that replace its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLS = {
    Tensor.add_,
    Tensor.clamp_,
    Tensor.erfinv_,
    Tensor.fill_,
    Tensor.mul_,
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.zero_,
    # These come as themselves; what they call is not seen.
    nn.init.constant_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
}


@contextmanager
def on_meta() -> Iterator[None]:
    """Create tensors on the meta device, and pass over what would fill them.

    Tensors of the meta device have no values, yet PyTorch works out shape and type of every step of their
    initialisation, which takes two thirds of the time of building a network.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Returns tensors of the meta device as they are where they would be filled in place."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
