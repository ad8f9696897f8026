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
    FLOAT_ROWS,
    INT_ROWS,
    LEFT,
    LEFT_IN,
    LOWER,
    LOWER_IN,
    LOWER_LEFT,
    LOWER_RIGHT,
    PITCH,
    RIGHT,
    RIGHT_IN,
    SHARE,
    UPPER,
    UPPER_IN,
    UPPER_LEFT,
    UPPER_RIGHT,
    describe_levels,
    place,
    read,
    read_reference,
    scratch,
    softmax,
    write,
)
from piip.ops.vectors import dot, load, scaled_sum, store, zeros

_COMPILED = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@register_jitable
def _number(numbers: Any, row: int, k: int) -> Any:
    return read(numbers, row * PITCH + k)


@register_jitable
def _cell(cells: Any, row: int, k: int, stride: int) -> Any:
    return np.int64(read(cells, row * PITCH + k)) * stride


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
    start: int,
    stop: int,
) -> None:
    """Compute the queries ``start`` to ``stop`` of all images, counted through."""
    total_cells, queries, heads, num_levels, points, references = sizes
    width_d = len(lanes)
    samples = num_levels * points
    together = min(heads, MOST_POINTS // samples)
    stride = heads * width_d
    numbers = scratch(FLOAT_ROWS * PITCH, np.asarray(lanes[0]).dtype)
    cells = scratch(INT_ROWS * PITCH, np.dtype(np.int32))
    describe_levels(levels, num_levels, points, together, numbers, cells)
    for item in range(start, stop):
        image = item // queries
        reference = item if references > 1 else item - image * queries
        read_reference(whole, fraction, 2 * reference * num_levels, num_levels, points, together, numbers)
        for first_head in range(0, heads, together):
            count = min(together, heads - first_head)
            row = (item * heads + first_head) * samples
            softmax(logits, row, samples, count, numbers)
            place(offsets, row, count * samples, numbers, cells)
            for head in range(count):
                base = image * total_cells * stride + (first_head + head) * width_d
                attended = zeros(lanes)
                for k in range(head * samples, (head + 1) * samples):
                    share = _number(numbers, SHARE, k)
                    upper, lower = share * _number(numbers, UPPER, k), share * _number(numbers, LOWER, k)
                    left, right = _number(numbers, LEFT, k), _number(numbers, RIGHT, k)
                    a = load(value, base + _cell(cells, UPPER_LEFT, k, stride), lanes)
                    b = load(value, base + _cell(cells, UPPER_RIGHT, k, stride), lanes)
                    c = load(value, base + _cell(cells, LOWER_LEFT, k, stride), lanes)
                    d = load(value, base + _cell(cells, LOWER_RIGHT, k, stride), lanes)
                    attended = scaled_sum(attended, a, upper * left)
                    attended = scaled_sum(attended, b, upper * right)
                    attended = scaled_sum(attended, c, lower * left)
                    attended = scaled_sum(attended, d, lower * right)
                store(output, (item * heads + first_head + head) * width_d, attended)


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
    image: int,
    first_head: int,
    last_head: int,
) -> None:
    """Compute the gradients of the heads ``first_head`` to ``last_head`` (exclusive) of an image.

    No two calls with different heads write to the same place: no atomic operations, the same result every time.
    """
    total_cells, queries, heads, num_levels, points, references = sizes
    width_d = len(lanes)
    samples = num_levels * points
    together = min(last_head - first_head, MOST_POINTS // samples)
    stride = heads * width_d
    numbers = scratch(FLOAT_ROWS * PITCH, np.asarray(lanes[0]).dtype)
    cells = scratch(INT_ROWS * PITCH, np.dtype(np.int32))
    pulled = scratch(4 * PITCH, np.asarray(lanes[0]).dtype)
    describe_levels(levels, num_levels, points, together, numbers, cells)
    for query in range(queries):
        item = image * queries + query
        reference = item if references > 1 else query
        read_reference(whole, fraction, 2 * reference * num_levels, num_levels, points, together, numbers)
        for group in range(first_head, last_head, together):
            count = min(together, last_head - group)
            row = (item * heads + group) * samples
            softmax(logits, row, samples, count, numbers)
            place(offsets, row, count * samples, numbers, cells)
            for head in range(count):
                gradient = load(grad_output, (item * heads + group + head) * width_d, lanes)
                base = image * total_cells * stride + (group + head) * width_d
                for k in range(head * samples, (head + 1) * samples):
                    share = _number(numbers, SHARE, k)
                    upper, lower = share * _number(numbers, UPPER, k), share * _number(numbers, LOWER, k)
                    left, right = _number(numbers, LEFT, k), _number(numbers, RIGHT, k)
                    a = base + _cell(cells, UPPER_LEFT, k, stride)
                    b = base + _cell(cells, UPPER_RIGHT, k, stride)
                    c = base + _cell(cells, LOWER_LEFT, k, stride)
                    d = base + _cell(cells, LOWER_RIGHT, k, stride)
                    write(pulled, k, dot(gradient, load(value, a, lanes)))
                    write(pulled, PITCH + k, dot(gradient, load(value, b, lanes)))
                    write(pulled, 2 * PITCH + k, dot(gradient, load(value, c, lanes)))
                    write(pulled, 3 * PITCH + k, dot(gradient, load(value, d, lanes)))
                    _push(grad_value, a, gradient, upper * left, lanes)
                    _push(grad_value, b, gradient, upper * right, lanes)
                    _push(grad_value, c, gradient, lower * left, lanes)
                    _push(grad_value, d, gradient, lower * right, lanes)
            _differentiate(pulled, numbers, row, samples, count, grad_offsets, grad_logits)


@register_jitable
def _differentiate(
    pulled: Any, numbers: Any, row: int, samples: int, heads: int, grad_offsets: Any, grad_logits: Any
) -> None:
    """Turn the products of the output's gradient with the four pixels into gradients of offsets and logits."""
    for k in range(heads * samples):
        a, b = read(pulled, k), read(pulled, PITCH + k)
        c, d = read(pulled, 2 * PITCH + k), read(pulled, 3 * PITCH + k)
        left, right = _number(numbers, LEFT, k), _number(numbers, RIGHT, k)
        upper, lower = _number(numbers, UPPER, k), _number(numbers, LOWER, k)
        left_in, right_in = _number(numbers, LEFT_IN, k), _number(numbers, RIGHT_IN, k)
        upper_in, lower_in = _number(numbers, UPPER_IN, k), _number(numbers, LOWER_IN, k)
        share = _number(numbers, SHARE, k)
        across = upper * (right_in * b - left_in * a) + lower * (right_in * d - left_in * c)
        down = left * (lower_in * c - upper_in * a) + right * (lower_in * d - upper_in * b)
        write(grad_offsets, 2 * (row + k), share * across)
        write(grad_offsets, 2 * (row + k) + 1, share * down)
        write(pulled, k, upper * (left * a + right * b) + lower * (left * c + right * d))
    for head in range(heads):
        first = head * samples
        mean = pulled.dtype.type(0)
        for k in range(first, first + samples):
            mean += _number(numbers, SHARE, k) * read(pulled, k)
        for k in range(first, first + samples):
            write(grad_logits, row + k, _number(numbers, SHARE, k) * (read(pulled, k) - mean))
