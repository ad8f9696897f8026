"""Training memory for little time: outputs of norms and activations are computed again, not kept.

Linear layers keep their inputs for the backward pass. Where these come from a norm or an activation, they follow
within a pass over memory from that one's own input, which is kept in any case: a transformer block keeps a third
less. Compilers do the same by themselves.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class CheapModule(nn.Module):
    """A module whose output takes little time and nothing but its first input and constants to compute again."""


CHEAP = (CheapModule, nn.LayerNorm, nn.GroupNorm, nn.GELU, nn.SiLU)


class Recipe(NamedTuple):
    """What stands in for a tensor that autograd wants to keep: the function that made it, and from what."""

    make: Callable[..., Tensor]
    first: "Tensor | Recipe"
    version: int
    others: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def cook(self) -> Tensor:
        """Return the tensor."""
        first = self.first.cook() if isinstance(self.first, Recipe) else self.first
        if isinstance(self.first, Tensor) and first._version != self.version:
            raise RuntimeError(
                "The input of a norm or an activation was changed in place after the forward pass, so that its "
                "output cannot be computed again; use another grad_checkpointing, or leave the tensor as it is."
            )
        with torch.no_grad():
            return self.make(first, *self.others).as_strided(self.shape, self.stride)


class CheapRecomputation:
    """Lets the cheap modules inside ``root`` be computed again in the backward pass of what runs in `active`."""

    def __init__(self, root: nn.Module) -> None:
        self._outputs: dict[int, tuple[weakref.ref[Tensor], Recipe]] | None = None
        self._kept: list[weakref.ref[Tensor]] = []
        cheap = (module for module in root.modules() if isinstance(module, CHEAP))
        self._hooks = [module.register_forward_hook(self._remember) for module in cheap]

    def remove(self) -> None:
        """Detach from the modules."""
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Replace what autograd keeps, where it is an output of a cheap module."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            yield
            return
        self._outputs, self._kept = {}, []
        outer, _running.recorder = _recorder(), self
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._replace, _restore):
                yield
        finally:
            self._outputs, _running.recorder = None, outer

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._outputs is None or torch.compiler.is_compiling() or output.dtype != inputs[0].dtype:
            return  # where autocast changes the dtype, the module's input is a copy that nobody else keeps
        first, *others = inputs
        self._note(output, module.forward, first, self._replace(first), tuple(others))

    def _remember_cast(self, output: Tensor, source: Tensor) -> None:
        made = self._replace(source)
        larger = source.element_size() < output.element_size()
        if isinstance(made, Recipe) or self._is_kept(source) or larger:  # else the cast is less to keep
            self._note(output, torch.Tensor.to, source, made, (output.dtype,))

    def _note(
        self,
        output: Tensor,
        make: Callable[..., Tensor],
        source: Tensor,
        first: "Tensor | Recipe",
        others: tuple[Any, ...],
    ) -> None:
        """Remember how an output follows from a source, which is kept or made as ``first``."""
        if self._outputs is not None:
            recipe = Recipe(make, first, source._version, others, output.shape, output.stride())
            self._outputs[output.data_ptr()] = weakref.ref(output), recipe

    def _is_kept(self, tensor: Tensor) -> bool:
        return any(reference() is tensor for reference in self._kept)

    def _replace(self, tensor: Tensor) -> Tensor | Recipe:
        """Return the recipe of a tensor, or itself."""
        reference, recipe = (self._outputs or {}).get(tensor.data_ptr(), (None, None))
        output = reference() if reference is not None else None
        # A dead output's memory may have become another tensor.
        if recipe is None or output is None or not _same_entries(tensor, output):
            return tensor
        return recipe._replace(shape=tensor.shape, stride=tensor.stride())


_running = threading.local()


def _recorder() -> CheapRecomputation | None:
    return getattr(_running, "recorder", None)


def is_recording() -> bool:
    """Return whether casts are looked at."""
    return _recorder() is not None


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x.to(dtype)``; of an output of a cheap module, the backward pass gets it from that one's input."""
    output = x.to(dtype)
    recorder = _recorder()
    if recorder is not None and output is not x:
        recorder._remember_cast(output, x)
    return output


def scaled(parameter: Tensor, scale: Tensor) -> Tensor:
    """Return ``parameter * scale``, which the backward pass computes again."""
    output = parameter * scale
    recorder = _recorder()
    if recorder is not None:
        recorder._note(output, torch.mul, parameter, parameter, (scale.detach(),))
    return output


def announce_kept(x: Tensor) -> Tensor:
    """Return a tensor of which autograd keeps the memory anyway, so that casts of it need not be kept."""
    recorder = _recorder()
    if recorder is not None:
        recorder._kept.append(weakref.ref(x))
    return x


def _restore(kept: Tensor | Recipe) -> Tensor:
    return kept.cook() if isinstance(kept, Recipe) else kept


def _same_entries(tensor: Tensor, output: Tensor) -> bool:
    """Return whether a tensor with the same first entry is the output, but for the order of its dimensions."""
    return (
        tensor.dtype == output.dtype
        and tensor.numel() == output.numel()
        and _has_no_gaps(tensor)
        and _has_no_gaps(output)
        and output._version == 0
    )


def _has_no_gaps(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
