"""The fused deformable attention as an operator of torch: eager, autograd, torch.compile and export.

Shapes as in `piip.ops.deformable`. ``levels`` holds height, width and first cell of every level, one after the
other. On CPUs numba compiles the kernels, on GPUs Triton does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("piip::deformable_attention", mutates_args=(), device_types="cpu")
def fused(
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor | None,
    query_grid: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return the attended values (B, Q, M * D) in the dtype of ``value``.

    Args:
        value: (B, S, M, D), float32, float64 or bfloat16, on GPUs also float16.
        levels: 3 L numbers.
        reference: (x, y) from 0 to 1, (R, Q, 2), R = 1 or B; None where ``query_grid`` tells.
        query_grid: Height and width of the grid at whose token centres the references are; otherwise empty.
        offsets: In pixels, (B, Q, M, L, P, 2).
        logits: (B, Q, M, L, P).
    """
    from piip.ops import cpu

    return cpu.forward(value, levels, reference, query_grid, offsets, logits)


@torch.library.custom_op("piip::deformable_attention_backward", mutates_args=(), device_types="cpu")
def fused_backward(
    gradient: Tensor,
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor | None,
    query_grid: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
) -> Gradients:
    """Return the gradients of value, offsets and logits, each in its own dtype."""
    from piip.ops import cpu

    return cpu.backward(gradient, value, levels, reference, query_grid, offsets, logits)


@fused.register_kernel("cuda")
def _(
    value: Tensor, levels: Any, reference: Tensor | None, query_grid: Any, offsets: Tensor, logits: Tensor
) -> Tensor:
    from piip.ops import gpu

    return gpu.forward(value, levels, reference, query_grid, offsets, logits)


@fused_backward.register_kernel("cuda")
def _(
    gradient: Tensor,
    value: Tensor,
    levels: Any,
    reference: Tensor | None,
    query_grid: Any,
    offsets: Tensor,
    logits: Tensor,
) -> Gradients:
    from piip.ops import gpu

    return gpu.backward(gradient, value, levels, reference, query_grid, offsets, logits)


@fused.register_fake
def _(value: Tensor, levels: Any, reference: Any, query_grid: Any, offsets: Tensor, logits: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


@fused_backward.register_fake
def _(
    gradient: Tensor,
    value: Tensor,
    levels: Any,
    reference: Any,
    query_grid: Any,
    offsets: Tensor,
    logits: Tensor,
) -> Gradients:
    return value.new_empty(value.shape), offsets.new_empty(offsets.shape), logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.levels, reference, ctx.query_grid, offsets, logits = inputs
    ctx.save_for_backward(value, reference, offsets, logits)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, reference, offsets, logits = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = fused_backward(
        gradient, value, ctx.levels, reference, ctx.query_grid, offsets, logits
    )
    grad_reference = None
    if ctx.needs_input_grad[2]:
        grad_reference = _reference_gradient(grad_offsets, ctx.levels, reference)
    return grad_value, None, grad_reference, None, grad_offsets, grad_logits


def _reference_gradient(grad_offsets: Tensor, levels: Sequence[int], reference: Tensor) -> Tensor:
    """Reference and offsets are added: what moves one by a pixel moves the other."""
    pixels = grad_offsets.to(torch.promote_types(grad_offsets.dtype, torch.float32)).sum((2, 4))
    summed = torch.zeros_like(pixels[:, :, 0])
    for level, (height, width) in enumerate(zip(levels[0::3], levels[1::3], strict=True)):
        summed = summed + torch.stack([pixels[:, :, level, 0] * width, pixels[:, :, level, 1] * height], -1)
    shared = reference.shape[0] < summed.shape[0]
    return (summed.sum(0, keepdim=True) if shared else summed).to(reference.dtype)


fused.register_autograd(_differentiate, setup_context=_keep)
