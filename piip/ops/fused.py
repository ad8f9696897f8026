"""The fused deformable attention as an operator of torch: eager, autograd, torch.compile and export.

Shapes as in `piip.ops.deformable`. ``levels`` holds height, width and first cell of every level, one after the
other; the reference in pixels of every level is split into ``whole`` and ``fraction``, so that float32 has a
pixel's neighbourhood to itself: the error is a tenth of that of normalised coordinates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("piip::deformable_attention", mutates_args=(), device_types="cpu")
def fused(
    value: Tensor, levels: Sequence[int], whole: Tensor, fraction: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """Return the attended values (B, Q, M * D) in the dtype of ``offsets``.

    Args:
        value: (B, S, M, D), float32, float64 or bfloat16; all tensors are contiguous.
        levels: 3 L numbers.
        whole: Pixel left of and above the reference, int64 (R, Q, L, 2), R = 1 or B.
        fraction: The reference's distance from it, 0 to 1, (R, Q, L, 2).
        offsets: In pixels, (B, Q, M, L, P, 2), float64 where ``value`` is, else float32, like all that follow.
        logits: (B, Q, M, L, P).
    """
    from piip.ops import cpu

    return cpu.forward(value, levels, whole, fraction, offsets, logits)


@torch.library.custom_op("piip::deformable_attention_backward", mutates_args=(), device_types="cpu")
def fused_backward(
    gradient: Tensor,
    value: Tensor,
    levels: Sequence[int],
    whole: Tensor,
    fraction: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> Gradients:
    """Return the gradients of value, offsets and logits, all in the dtype of ``offsets``."""
    from piip.ops import cpu

    return cpu.backward(gradient, value, levels, whole, fraction, offsets, logits)


@fused.register_fake
def _(value: Tensor, levels: Any, whole: Tensor, fraction: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return offsets.new_empty(len(value), offsets.shape[1], value.shape[2] * value.shape[3])


@fused_backward.register_fake
def _(
    gradient: Tensor, value: Tensor, levels: Any, whole: Any, fraction: Any, offsets: Tensor, logits: Tensor
) -> Gradients:
    return (
        offsets.new_empty(value.shape),
        torch.empty_like(offsets),
        torch.empty_like(logits),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, levels, whole, fraction, offsets, logits = inputs
    ctx.levels = levels
    ctx.save_for_backward(value, whole, fraction, offsets, logits)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, whole, fraction, offsets, logits = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = fused_backward(
        gradient.contiguous(), value, ctx.levels, whole, fraction, offsets, logits
    )
    # The reference and the offsets are added: what moves one moves the other.
    grad_fraction = None
    if ctx.needs_input_grad[3]:
        summed = grad_offsets.sum((2, 4))
        grad_fraction = summed if len(fraction) == len(summed) else summed.sum(0, keepdim=True)
    return grad_value.to(value.dtype), None, None, grad_fraction, grad_offsets, grad_logits


fused.register_autograd(_differentiate, setup_context=_keep)
