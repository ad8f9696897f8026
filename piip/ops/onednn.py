"""Linear layers through oneDNN on CPUs, where torch's own way leaves part of the machine unused.

torch multiplies float32 matrices with MKL, which on AMD processors does without AVX-512; oneDNN, which torch brings
along for convolutions, uses it and is twice as fast there. bfloat16 matrices go to oneDNN in any case, but torch
first writes the bias to every row of the result, which oneDNN need not (docs/speed.md). Results differ by rounding.
"""

import functools
import platform
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piip.recomputing import cast, is_recording

FEWEST_MACS = 1 << 22
"""Multiply-accumulates below which a call's own cost would eat the gain."""


class Linear(nn.Linear):
    """torch's linear layer, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in_features) to (..., out_features)."""
        return linear(input, self.weight, self.bias)


class LinearGELU(nn.Linear):
    """A linear layer and the GELU after it in one pass, for inference."""

    approximate: Literal["none", "tanh"] = "none"

    def forward(self, input: Tensor) -> Tensor:
        """Transform (..., in_features) to (..., out_features)."""
        if torch.is_grad_enabled() or _better_dtype(input, self.weight) != self.weight.dtype:
            return F.gelu(F.linear(input, self.weight, self.bias), approximate=self.approximate)
        flat = input.reshape(-1, input.shape[-1])
        active = torch.ops.mkldnn._linear_pointwise(
            flat, self.weight, self.bias, "gelu", [], self.approximate
        )
        return active.view(*input.shape[:-1], self.out_features)


def use_linear(module: nn.Module) -> None:
    """Let every plain ``nn.Linear`` inside a module be computed by `linear`; names and tensors stay."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N), or None.

    Returns:
        (..., N).
    """
    dtype = _better_dtype(x, weight)
    if dtype is None:
        return F.linear(as_autocast(x) if is_recording() else x, weight, bias)
    x = cast(x, dtype)
    flat: Tensor = _OneDNNLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return flat.view(*x.shape[:-1], len(weight))


@functools.cache
def better_dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes of matrices that are multiplied faster by oneDNN than by torch, on this machine."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    dtypes = [torch.bfloat16] if has_arithmetic(torch.bfloat16) else []
    return frozenset([*dtypes, torch.float32] if _mkl_is_held_back() else dtypes)


@functools.cache
def has_arithmetic(dtype: torch.dtype) -> bool:
    """Return whether this processor multiplies matrices of a dtype by instructions of their own, fast."""
    supports = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    if dtype not in supports:
        return True
    asked = getattr(torch.ops.mkldnn, supports[dtype], None)
    return torch.backends.mkldnn.is_available() and asked is not None and bool(asked())


def _mkl_is_held_back() -> bool:
    """Return whether this machine has AVX-512 that MKL will not use."""
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    info = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (info.read_text() if info.exists() else platform.processor())


def is_watched() -> bool:
    """Return whether something looks at operations: a compiler, exporter, counter or functional transform."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or bool(torch._C._len_torch_dispatch_stack())
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def as_autocast(x: Tensor) -> Tensor:
    """Return a tensor in the dtype that autocast gives to linear layers, where it is active."""
    kind = x.device.type
    if x.dtype == torch.float64:  # which autocast leaves alone
        return x
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return cast(x, torch.get_autocast_dtype(kind))
    return x


def _better_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype of a product, if this is eager arithmetic of a dtype and a size where oneDNN is faster.

    Whatever looks at operations sees torch's own.
    """
    if is_watched():
        return None
    if x.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return None
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu") and torch.float64 not in (x.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype("cpu")
    elif weight.dtype != dtype:
        return None
    pays = (
        type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and x.numel() * len(weight) >= FEWEST_MACS
        and dtype in better_dtypes()
        # For any other layout, such as that of an expanded tensor, oneDNN has nothing but slow loops.
        and (weight.is_contiguous() or weight.t().is_contiguous())
    )
    return dtype if pays else None


class _OneDNNLinear(torch.autograd.Function):
    """A product in the dtype of ``x``. Written in terms of itself, so that it has derivatives of any order.

    Under autocast the backward pass casts the weight again: its copy would take half as much memory as the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = bias.dtype if bias is not None else None
        weight, bias = weight.to(x.dtype), bias.to(x.dtype) if bias is not None else None
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            linear(gradient, weight.to(x.dtype).t()) if needs_x else None,
            grad_weight(gradient, x).to(weight.dtype) if needs_weight else None,
            gradient.sum(0, dtype=ctx.bias_dtype) if needs_bias else None,
        )


def grad_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Return ``gradient.T @ x``; oneDNN copies its transposed first factor, which therefore is the narrower."""
    if gradient.shape[1] > x.shape[1]:
        return linear(x.t(), gradient.t()).t()
    return linear(gradient.t(), x.t())
