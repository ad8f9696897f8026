"""The fused kernels on GPUs: what is launched for a call; see `piip.ops.gpu_kernels`.

Block sizes follow from a head's width alone, by a count of the instructions that Triton compiles them to (compute
capability 9.0); nothing is tuned at run time.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from piip.ops import gpu_kernels as kernels
from piip.ops.reference import reference_points

THREADS = 128
"""Threads of a program."""
WIDEST = 16
"""Bytes that a thread reads or adds at once."""
MOST_UNROLLED = 8
"""Samples of a query up to which loops over points are unrolled; beyond, it costs registers and time to compile."""
MOST_QUERIES = 1 << 22
"""Tokens of a query grid up to which float32 tells its rows apart."""

# Triton's default is about to change; without fused multiply-adds the kernels are a third longer.
_OPTIONS = {"num_warps": THREADS // 32, "enable_fp_fusion": True}


def forward(
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor | None,
    query_grid: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return the attended values (B, Q, M * D) by one launch; see `piip.ops.fused`."""
    value, offsets, logits = value.contiguous(), offsets.contiguous(), logits.contiguous()
    batch, queries, heads = logits.shape[:3]
    width = value.shape[-1]
    output = value.new_empty(batch, queries, heads * width)
    if output.numel() == 0:
        return output
    shape = _shape(value, levels, reference, query_grid, logits)
    vector = _vector(width, value.element_size())
    programs = (triton.cdiv(queries * (width // vector), THREADS), heads, batch)
    with torch.cuda.device_of(value):
        kernels.forward_kernel[programs](
            value,
            offsets=offsets,
            logits=logits,
            output=output,
            VECTOR=vector,
            PAIR=_pair(value, vector),
            ITEMS=THREADS,
            **shape,
            **_OPTIONS,
        )
    return output


def backward(
    gradient: Tensor,
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor | None,
    query_grid: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``value``, ``offsets`` and ``logits``, each in its own dtype.

    Several queries add to the same values, by atomic operations, in an order that changes from time to time. Where
    torch is asked for deterministic algorithms, what is to be added is listed, sorted by where it goes, and added
    in that order: about 30 bytes of memory for every point and pixel, and the time of the sort.
    """
    gradient, value = gradient.contiguous(), value.contiguous()
    offsets, logits = offsets.contiguous(), logits.contiguous()
    grad_offsets, grad_logits = torch.empty_like(offsets), torch.empty_like(logits)
    if gradient.numel() == 0:
        return torch.zeros_like(value), grad_offsets, grad_logits
    shape = _shape(value, levels, reference, query_grid, logits)
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    batch, queries, heads, _, _ = logits.shape
    width = value.shape[-1]
    vector = _vector(width, exact.itemsize)
    lanes = triton.next_power_of_2(width)
    rows = max(1, THREADS * vector // lanes)
    atomic = not torch.are_deterministic_algorithms_enabled()
    grad_value = entry_cells = entry_shares = None
    if atomic:
        grad_value = torch.zeros_like(value, dtype=exact)
    else:
        entries = (batch * heads, 4 * queries * math.prod(logits.shape[3:]))
        entry_cells = value.new_empty(entries, dtype=torch.int32)
        entry_shares = value.new_empty(entries, dtype=exact)
    with torch.cuda.device_of(value):
        kernels.backward_kernel[triton.cdiv(queries, rows), heads, batch](
            gradient,
            value,
            offsets=offsets,
            logits=logits,
            grad_value=grad_value,
            grad_offsets=grad_offsets,
            grad_logits=grad_logits,
            entry_cells=entry_cells,
            entry_shares=entry_shares,
            VECTOR=vector,
            PAIR=_pair(value, vector),
            LANES=lanes,
            ROWS=rows,
            COLUMNS=triton.next_power_of_2(math.prod(logits.shape[3:])),
            ATOMIC=atomic,
            **shape,
            **_OPTIONS,
        )
        if grad_value is None:
            assert entry_cells is not None
            grad_value = _collect(gradient, value, entry_cells, entry_shares, lanes, rows)
    return grad_value.to(value.dtype), grad_offsets, grad_logits


def _collect(
    gradient: Tensor, value: Tensor, entry_cells: Tensor, entry_shares: Tensor | None, lanes: int, rows: int
) -> Tensor:
    """Return the gradient of ``value``: entries are sorted, then every token adds up its own."""
    batch, cells, heads, width = value.shape
    queries = gradient.shape[1]
    ordered, order = entry_cells.sort(dim=1, stable=True)
    edges = torch.arange(cells + 1, dtype=torch.int32, device=value.device).repeat(len(ordered), 1)
    grad_value = torch.empty_like(value)
    kernels.collect_kernel[triton.cdiv(cells, rows), heads, batch](
        gradient,
        entry_shares,
        order,
        torch.searchsorted(ordered, edges),
        grad_value,
        queries,
        cells,
        HEADS=heads,
        WIDTH=width,
        SAMPLES=entry_cells.shape[1] // (4 * queries),
        EXACT=tl.float64 if value.dtype == torch.float64 else tl.float32,
        LANES=lanes,
        ROWS=rows,
        **_OPTIONS,
    )
    return grad_value


def _shape(
    value: Tensor, levels: Sequence[int], reference: Tensor | None, query_grid: Sequence[int], logits: Tensor
) -> dict[str, Any]:
    """Return the arguments that both directions share."""
    queries, heads, depth, points = logits.shape[1:]
    if reference is None and math.prod(query_grid) > MOST_QUERIES:
        reference = reference_points((query_grid[0], query_grid[1]), value.device)
    height, width = query_grid if reference is None else (1, 1)
    return {
        "reference": None if reference is None else reference.contiguous(),
        "levels": tuple(levels),
        "query_height": height,
        "query_width": width,
        "share_y": 1 / height,
        "share_x": 1 / width,
        "reference_step": queries if reference is not None and len(reference) > 1 else 0,
        "queries": queries,
        "cells": value.shape[1],
        "CENTRES": reference is None,
        "HEADS": heads,
        "WIDTH": value.shape[-1],
        "LEVELS": depth,
        "POINTS": points,
        "EXACT": tl.float64 if value.dtype == torch.float64 else tl.float32,
        "UNROLL": points if depth * points <= MOST_UNROLLED else 1,
    }


def _vector(width: int, size: int) -> int:
    """Return how many channels of a head, of ``size`` bytes each, a thread takes at once: a power of two."""
    return min(width & -width, WIDEST // size)


def _pair(value: Tensor, vector: int) -> int:
    """Return 2 where values can be read as pairs of bfloat16, else 1; a slice may begin between two pairs."""
    return 2 if value.dtype == torch.bfloat16 and vector > 1 and value.data_ptr() % 4 == 0 else 1
