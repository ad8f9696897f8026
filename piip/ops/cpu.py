"""The fused kernels on all threads of torch's own pool (Linux; one thread elsewhere)."""

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

from piip.ops.kernels import backward_range, forward_range
from piip.ops.reference import reference_points, split_pixels

STORED = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.uint16}
"""How kernels see the values of every dtype that they take; bfloat16 as its bits."""
QUERIES_PER_CHUNK = 32

# What a call hands to the threads: a counter of chunks, sizes, and the addresses of the tensors.
_LENGTH = 24
_NEXT, _CHUNKS, _PER_CHUNK, _SIZES, _ADDRESSES = 0, 1, 2, 3, 10


def forward(
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor | None,
    query_grid: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
) -> Tensor:
    """Return the attended values (B, Q, M * D) in the dtype of ``value``; see `piip.ops.fused`."""
    inputs = _inputs(value, levels, reference, query_grid, offsets, logits)
    batch, queries = offsets.shape[:2]
    output = inputs[-1].new_empty(batch, queries, value.shape[2] * value.shape[3])
    runner = _forward_runner(value.shape[-1], logits.shape[3] * logits.shape[4], value.dtype)
    _run(runner, -(-batch * queries // QUERIES_PER_CHUNK), QUERIES_PER_CHUNK, [*inputs, output])
    return output.to(value.dtype)


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

    Threads share out images and heads, which no two of them write to: the result is the same every time.
    """
    batch, heads = len(value), value.shape[2]
    inputs = _inputs(value, levels, reference, query_grid, offsets, logits)
    exact_offsets, exact_logits = inputs[4:]
    gradient = gradient.to(exact_offsets.dtype).contiguous()
    grad_value = torch.zeros_like(inputs[0], dtype=exact_offsets.dtype)
    gradients = [grad_value, torch.empty_like(exact_offsets), torch.empty_like(exact_logits)]
    groups = min(heads, -(-torch.get_num_threads() // max(batch, 1)))
    per_chunk = -(-heads // groups)
    runner = _backward_runner(value.shape[-1], logits.shape[3] * logits.shape[4], value.dtype)
    _run(runner, batch * -(-heads // per_chunk), per_chunk, [*inputs, gradient, *gradients])
    return gradients[0].to(value.dtype), gradients[1].to(offsets.dtype), gradients[2].to(logits.dtype)


def _inputs(
    value: Tensor,
    levels: Sequence[int],
    reference: Tensor | None,
    query_grid: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
) -> list[Any]:
    """Return what the kernels read: contiguous, in the dtype they compute in, references split in pixels."""
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    if reference is None:
        whole, fraction = _grid_pixels(tuple(query_grid), tuple(levels), exact)
    else:
        whole, fraction = split_pixels(reference, levels, exact)
    tensors = [whole, fraction, offsets.to(exact), logits.to(exact)]
    return [value.contiguous(), levels, *(tensor.contiguous() for tensor in tensors)]


@functools.lru_cache(maxsize=32)
def _grid_pixels(grid: tuple[int, ...], levels: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the split references of a grid's tokens: a network asks for the same ones in every block."""
    return split_pixels(reference_points((grid[0], grid[1]), torch.device("cpu")), levels, dtype)


def _run(runner: Any, chunks: int, per_chunk: int, tensors: Sequence[Any]) -> None:
    value, levels, whole, _, offsets, *_ = tensors
    if not chunks:
        return
    shapes = np.array(levels, np.int64)
    batch, cells, heads, _ = value.shape
    sizes = [cells, offsets.shape[1], heads, len(levels) // 3, offsets.shape[4], len(whole), batch]
    call = np.zeros(_LENGTH, np.int64)
    call[_CHUNKS], call[_PER_CHUNK] = chunks, per_chunk
    call[_SIZES : _SIZES + len(sizes)] = sizes
    addresses = [shapes.ctypes.data if item is levels else item.data_ptr() for item in tensors]
    call[_ADDRESSES : _ADDRESSES + len(addresses)] = addresses
    threads, parallel = min(torch.get_num_threads(), chunks), _gomp_parallel()
    if parallel is None or threads == 1:
        runner.ctypes(call.ctypes.data)
    else:
        parallel(runner.address, call.ctypes.data, threads, 0)


@functools.cache
def _gomp_parallel() -> Any:
    """Return the entry of the OpenMP library that torch has loaded, or None where it is another one.

    A second pool of threads beside torch's would fight it for the cores.
    """
    maps = Path("/proc/self/maps")
    if sys.platform != "linux" or not maps.exists():
        return None
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    if len(loaded) != 1:
        return None
    function = ctypes.CDLL(loaded.pop()).GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Return an address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), generate


@intrinsic
def _next_chunk(typing_context: Any, call: Any) -> Any:
    """Return the number of a chunk of work that no other thread gets."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = context.make_array(call)(context, builder, args[0]).data
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(call), generate


def _unpacker(width: int, dtype: torch.dtype) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return a compiled function that finds a call's inputs, the type of its floats, and the lanes of a head."""
    stored, exact = STORED[dtype], np.float64 if dtype == torch.float64 else np.float32

    @njit
    def unpack(call: Any) -> Any:
        cells, queries, heads, levels, points, references, batch = (
            call[3], call[4], call[5], call[6], call[7], call[8], call[9],
        )  # fmt: skip
        samples = batch * queries * heads * levels * points
        places = references * queries * levels * 2
        return (
            carray(_pointer(call[10]), (batch * cells * heads * width,), stored),
            carray(_pointer(call[11]), (3 * levels,), np.int64),
            carray(_pointer(call[12]), (places,), np.int64),
            carray(_pointer(call[13]), (places,), exact),
            carray(_pointer(call[14]), (2 * samples,), exact),
            carray(_pointer(call[15]), (samples,), exact),
            carray(_pointer(call[16]), (batch * queries * heads * width,), exact),
            (cells, queries, heads, levels, references),
        )

    return unpack, exact, (exact(0),) * width


@functools.cache
def _forward_runner(width: int, samples: int, dtype: torch.dtype) -> Any:
    """Return what each thread does in a forward pass: chunks of queries. The kernel inside is cached on disk."""
    unpack, exact, lanes = _unpacker(width, dtype)
    slots = (exact(0),) * samples

    @cfunc(types.void(types.voidptr))
    def run(pointer: Any) -> None:
        call = carray(pointer, (_LENGTH,), np.int64)
        value, shapes, whole, fraction, offsets, logits, output, sizes = unpack(call)
        chunk = _next_chunk(call)
        while chunk < call[1]:
            start, last = chunk * call[2], call[9] * call[4]
            stop = min(start + call[2], last)
            forward_range(
                value, shapes, whole, fraction, offsets, logits, output, sizes, lanes, slots, start, stop
            )
            chunk = _next_chunk(call)

    return run


@functools.cache
def _backward_runner(width: int, samples: int, dtype: torch.dtype) -> Any:
    """Return what each thread does in a backward pass: chunks of heads of an image."""
    unpack, exact, lanes = _unpacker(width, dtype)
    slots = (exact(0),) * samples

    @cfunc(types.void(types.voidptr))
    def run(pointer: Any) -> None:
        call = carray(pointer, (_LENGTH,), np.int64)
        value, shapes, whole, fraction, offsets, logits, gradient, sizes = unpack(call)
        grad_value = carray(_pointer(call[17]), (len(value),), exact)
        grad_offsets = carray(_pointer(call[18]), (len(offsets),), exact)
        grad_logits = carray(_pointer(call[19]), (len(logits),), exact)
        heads, groups = call[5], (call[5] + call[2] - 1) // call[2]
        chunk = _next_chunk(call)
        while chunk < call[1]:
            image, first = chunk // groups, chunk % groups * call[2]
            last = min(first + call[2], heads)
            backward_range(
                gradient, value, shapes, whole, fraction, offsets, logits, grad_value, grad_offsets, grad_logits,
                sizes, lanes, slots, image, first, last,
            )  # fmt: skip
            chunk = _next_chunk(call)

    return run
