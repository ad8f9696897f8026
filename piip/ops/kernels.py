"""Deformable attention on CPUs: softmax, locations, bilinear gather and weighted sum in one pass, by numba.

All arrays are flat. Shapes and names are those of `piip.ops.fused`: value (B, S, M, D), offsets (B, Q, M, L, P, 2),
logits (B, Q, M, L, P); whole and fraction are the reference in pixels (R, Q, L, 2) with R = 1 or B.
"""

from typing import Any

import numpy as np
from numba import njit
from numba.extending import register_jitable

from piip.ops.deformable import MOST_POINTS
from piip.ops.placing import (
    CELLS,
    LEFT,
    LEFT_IN,
    LOWER,
    LOWER_IN,
    PITCH,
    PULL,
    RIGHT,
    RIGHT_IN,
    ROWS,
    SHARE,
    UPPER,
    UPPER_IN,
    WEIGHTS,
    describe_levels,
    get,
    get_whole,
    place,
    put,
    read,
    read_query,
    scratch,
    softmax,
    write,
)
from piip.ops.vectors import load, scaled_sum, store, write_dots, zeros

POINTS_AT_ONCE = 256
"""Points that are placed together: enough that vectors overlap, few enough to stay in the first-level cache."""

_COMPILED = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@register_jitable
def _cell(numbers: Any, corner: int, k: int, stride: int) -> Any:
    return np.int64(get_whole(numbers, CELLS + corner, k)) * stride


@register_jitable
def _place_queries(
    offsets: Any,
    logits: Any,
    whole: Any,
    fraction: Any,
    sizes: Any,
    slots: Any,
    first: int,
    last: int,
    first_head: int,
    heads: int,
    numbers: Any,
) -> None:
    """Write weights and cells of all points of ``heads`` heads of the queries ``first`` to ``last``."""
    _, queries, all_heads, num_levels, references = sizes
    for item in range(first, last):
        reference = item if references > 1 else item % queries
        read_query(
            offsets,
            logits,
            whole,
            fraction,
            (item * all_heads + first_head) * len(slots),
            2 * reference * num_levels,
            num_levels,
            len(slots) // num_levels,
            heads,
            (item - first) * heads * len(slots),
            numbers,
        )
    softmax((last - first) * heads, slots, numbers)
    place((last - first) * heads * len(slots), numbers)


@njit(**_COMPILED)
def forward_range(
    value: Any,
    levels: Any,
    whole: Any,
    fraction: Any,
    offsets: Any,
    logits: Any,
    output: Any,
    sizes: Any,
    lanes: Any,
    slots: Any,
    start: int,
    stop: int,
) -> None:
    """Compute the queries ``start`` to ``stop`` of all images, counted through."""
    total_cells, queries, heads, num_levels, _ = sizes
    width_d, samples = len(lanes), len(slots)
    stride = heads * width_d
    together = min(heads, MOST_POINTS // samples)
    at_once = max(1, POINTS_AT_ONCE // (together * samples))
    numbers = scratch(ROWS * PITCH, np.asarray(lanes[0]).dtype)
    describe_levels(levels, num_levels, samples // num_levels, at_once * together, numbers)
    for first_head in range(0, heads, together):
        count = min(together, heads - first_head)
        for first in range(start, stop, at_once):
            last = min(first + at_once, stop)
            _place_queries(
                offsets, logits, whole, fraction, sizes, slots, first, last, first_head, count, numbers
            )
            k = 0
            for item in range(first, last):
                base = item // queries * total_cells * stride + first_head * width_d
                target = (item * heads + first_head) * width_d
                for head in range(count):
                    attended = zeros(lanes)
                    for _ in range(samples):
                        for corner in range(4):
                            pixel = load(value, base + _cell(numbers, corner, k, stride), lanes)
                            attended = scaled_sum(attended, pixel, get(numbers, WEIGHTS + corner, k))
                        k += 1
                    store(output, target + head * width_d, attended)
                    base += width_d


@register_jitable
def _push(grad_value: Any, index: Any, gradient: Any, amount: Any, lanes: Any) -> None:
    """Add the output's gradient, times an amount, to a cell of the values' gradient."""
    store(grad_value, index, scaled_sum(load(grad_value, index, lanes), gradient, amount))


@njit(**_COMPILED)
def backward_range(
    grad_output: Any,
    value: Any,
    levels: Any,
    whole: Any,
    fraction: Any,
    offsets: Any,
    logits: Any,
    grad_value: Any,
    grad_offsets: Any,
    grad_logits: Any,
    sizes: Any,
    lanes: Any,
    slots: Any,
    image: int,
    first_head: int,
    last_head: int,
) -> None:
    """Compute the gradients of the heads ``first_head`` to ``last_head`` (exclusive) of an image.

    No two calls with different heads write to the same place: no atomic operations, the same result every time.
    """
    total_cells, queries, heads, num_levels, _ = sizes
    width_d, samples = len(lanes), len(slots)
    stride = heads * width_d
    together = min(last_head - first_head, MOST_POINTS // samples)
    at_once = max(1, POINTS_AT_ONCE // (together * samples))
    numbers = scratch(ROWS * PITCH, np.asarray(lanes[0]).dtype)
    pulled = scratch(4 * PITCH, np.asarray(lanes[0]).dtype)
    describe_levels(levels, num_levels, samples // num_levels, at_once * together, numbers)
    for group in range(first_head, last_head, together):
        count = min(together, last_head - group)
        for first in range(image * queries, (image + 1) * queries, at_once):
            last = min(first + at_once, (image + 1) * queries)
            _place_queries(offsets, logits, whole, fraction, sizes, slots, first, last, group, count, numbers)
            k = 0
            for item in range(first, last):
                base = image * total_cells * stride + group * width_d
                source = (item * heads + group) * width_d
                for head in range(count):
                    gradient = load(grad_output, source + head * width_d, lanes)
                    for _ in range(samples):
                        a = base + _cell(numbers, 0, k, stride)
                        b = base + _cell(numbers, 1, k, stride)
                        c = base + _cell(numbers, 2, k, stride)
                        d = base + _cell(numbers, 3, k, stride)
                        write_dots(
                            pulled,
                            4 * k,
                            gradient,
                            load(value, a, lanes),
                            load(value, b, lanes),
                            load(value, c, lanes),
                            load(value, d, lanes),
                        )
                        _push(grad_value, a, gradient, get(numbers, WEIGHTS, k), lanes)
                        _push(grad_value, b, gradient, get(numbers, WEIGHTS + 1, k), lanes)
                        _push(grad_value, c, gradient, get(numbers, WEIGHTS + 2, k), lanes)
                        _push(grad_value, d, gradient, get(numbers, WEIGHTS + 3, k), lanes)
                        k += 1
                    base += width_d
            for item in range(first, last):
                row, start = (item * heads + group) * samples, (item - first) * count * samples
                _differentiate(pulled, numbers, row, start, samples, count, grad_offsets, grad_logits)


@register_jitable
def _differentiate(
    pulled: Any,
    numbers: Any,
    row: int,
    start: int,
    samples: int,
    heads: int,
    grad_offsets: Any,
    grad_logits: Any,
) -> None:
    """Turn the products of the output's gradient with the four pixels into gradients of offsets and logits."""
    for k in range(start, start + heads * samples):
        a, b = read(pulled, 4 * k), read(pulled, 4 * k + 1)
        c, d = read(pulled, 4 * k + 2), read(pulled, 4 * k + 3)
        left, right = get(numbers, LEFT, k), get(numbers, RIGHT, k)
        upper, lower = get(numbers, UPPER, k), get(numbers, LOWER, k)
        left_in, right_in = get(numbers, LEFT_IN, k), get(numbers, RIGHT_IN, k)
        upper_in, lower_in = get(numbers, UPPER_IN, k), get(numbers, LOWER_IN, k)
        share = get(numbers, SHARE, k)
        across = upper * (right_in * b - left_in * a) + lower * (right_in * d - left_in * c)
        down = left * (lower_in * c - upper_in * a) + right * (lower_in * d - upper_in * b)
        write(grad_offsets, 2 * (row + k - start), share * across)
        write(grad_offsets, 2 * (row + k - start) + 1, share * down)
        put(numbers, PULL, k, upper * (left * a + right * b) + lower * (left * c + right * d))
    for head in range(heads):
        first = start + head * samples
        mean = numbers.dtype.type(0)
        for k in range(first, first + samples):
            mean += get(numbers, SHARE, k) * get(numbers, PULL, k)
        for k in range(first, first + samples):
            write(grad_logits, row + k - start, get(numbers, SHARE, k) * (get(numbers, PULL, k) - mean))
