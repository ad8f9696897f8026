"""Deformable attention on CPUs: softmax, locations, bilinear gather and weighted sum in one pass, by numba.

All arrays are flat. Shapes and names are those of `piip.ops.fused`: value (B, S, M, D), offsets (B, Q, M, L, P, 2),
logits (B, Q, M, L, P); whole and fraction are the reference in pixels (R, Q, L, 2) with R = 1 or B.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from piip.ops.vectors import dot, load, scaled, scaled_sum, store, zeros

FAR = 1.0e6
"""Offsets in pixels beyond which (and NaN) a point is outside any map; keeps indices from overflowing."""

_COMPILED = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


@intrinsic
def read(typing_context: Any, array: Any, index: Any) -> Any:
    """Return an entry of a flat array, without Python's negative indices."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, index), generate


@intrinsic
def write(typing_context: Any, array: Any, index: Any, number: Any) -> Any:
    """Set an entry of a flat array, without Python's negative indices."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, index, array.dtype), generate


@intrinsic
def floor(typing_context: Any, number: Any) -> Any:
    """Return the number rounded down, as a float."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        name = "llvm.floor.f64" if isinstance(kind, ir.DoubleType) else "llvm.floor.f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, [args[0]])

    return number(number), generate


@intrinsic
def power_of_two(typing_context: Any, exponent: Any) -> Any:
    """Return 2 to a whole float32 from -126 to 127, by its bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(32)
        biased = builder.add(builder.fptosi(args[0], whole), ir.Constant(whole, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(whole, 23)), ir.FloatType())

    return types.float32(types.float32), generate


def exp(number: Any) -> Any:
    """Return the exponential of a number that is not above 0."""
    return math.exp(number)


@overload(exp)
def _exp(number: Any) -> Any:
    return _exp_float32 if number == types.float32 else _exp_float64


@register_jitable
def _exp_float64(number: Any) -> Any:
    return math.exp(number)


@register_jitable
def _exp_float32(number: Any) -> Any:
    """2^n times a polynomial of the remainder, |r| <= ln(2) / 2; 1e-7 from the true value."""
    bounded = max(number, np.float32(-87.0)) if number == number else number
    n = floor(bounded * np.float32(1.44269504) + np.float32(0.5))
    r = bounded - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(0.5)
    p = p * r * r + r + np.float32(1.0)
    return p * power_of_two(n) if number == number else number


@register_jitable
def _place(offset: Any, fraction: Any, whole: Any) -> Any:
    """Return the pixel at the upper left of a point on one axis, and how far the point lies beyond it."""
    position = fraction + offset
    if not abs(position) < FAR:
        position = position * 0 + FAR if position == position else offset * 0 + FAR
    below = floor(position)
    return whole + np.int64(below), position - below


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
    one = lanes[0] * 0 + 1
    samples = num_levels * points
    stride = heads * width_d
    for item in range(start, stop):
        image = item // queries
        reference = item if references > 1 else item - image * queries
        for head in range(heads):
            row = (item * heads + head) * samples
            top = read(logits, row)
            for k in range(1, samples):
                top = max(top, read(logits, row + k))
            total = one * 0
            attended = zeros(lanes)
            for level in range(num_levels):
                height, width, first = levels[3 * level], levels[3 * level + 1], levels[3 * level + 2]
                origin = 2 * (reference * num_levels + level)
                base = (image * total_cells + first) * stride + head * width_d
                for k in range(row + level * points, row + (level + 1) * points):
                    share = exp(read(logits, k) - top)
                    total += share
                    x, dx = _place(read(offsets, 2 * k), read(fraction, origin), read(whole, origin))
                    y, dy = _place(
                        read(offsets, 2 * k + 1), read(fraction, origin + 1), read(whole, origin + 1)
                    )
                    upper, lower = share * (one - dy), share * dy
                    corner = base + (y * width + x) * stride
                    if x >= 0 and y >= 0 and x + 1 < width and y + 1 < height:
                        attended = scaled_sum(attended, load(value, corner, lanes), upper * (one - dx))
                        attended = scaled_sum(attended, load(value, corner + stride, lanes), upper * dx)
                        corner += width * stride
                        attended = scaled_sum(attended, load(value, corner, lanes), lower * (one - dx))
                        attended = scaled_sum(attended, load(value, corner + stride, lanes), lower * dx)
                    elif x >= -1 and y >= -1 and x < width and y < height:
                        if y >= 0 and x >= 0:
                            attended = scaled_sum(attended, load(value, corner, lanes), upper * (one - dx))
                        if y >= 0 and x + 1 < width:
                            attended = scaled_sum(attended, load(value, corner + stride, lanes), upper * dx)
                        corner += width * stride
                        if y + 1 < height and x >= 0:
                            attended = scaled_sum(attended, load(value, corner, lanes), lower * (one - dx))
                        if y + 1 < height and x + 1 < width:
                            attended = scaled_sum(attended, load(value, corner + stride, lanes), lower * dx)
            store(output, (item * heads + head) * width_d, scaled(attended, one / total))


@register_jitable
def _pull(value: Any, index: Any, inside: Any, gradient: Any, lanes: Any) -> Any:
    """Return the product of the output's gradient with a cell of the values, 0 outside the map."""
    return dot(gradient, load(value, index, lanes)) if inside else lanes[0] * 0


@register_jitable
def _push(grad_value: Any, index: Any, inside: Any, gradient: Any, amount: Any, lanes: Any) -> None:
    """Add the output's gradient, times an amount, to a cell of the values' gradient."""
    if inside:
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
    one = lanes[0] * 0 + 1
    samples = num_levels * points
    stride = heads * width_d
    shares = np.empty(samples, np.asarray(one).dtype)
    for query in range(queries):
        item = image * queries + query
        reference = item if references > 1 else query
        for head in range(first_head, last_head):
            row = (item * heads + head) * samples
            top = read(logits, row)
            for k in range(1, samples):
                top = max(top, read(logits, row + k))
            total = one * 0
            for k in range(samples):
                share = exp(read(logits, row + k) - top)
                total += share
                write(shares, k, share)
            gradient = load(grad_output, (item * heads + head) * width_d, lanes)
            mean = one * 0
            for level in range(num_levels):
                height, width, first = levels[3 * level], levels[3 * level + 1], levels[3 * level + 2]
                origin = 2 * (reference * num_levels + level)
                base = (image * total_cells + first) * stride + head * width_d
                for point in range(level * points, (level + 1) * points):
                    k = row + point
                    share = read(shares, point) / total
                    write(shares, point, share)
                    x, dx = _place(read(offsets, 2 * k), read(fraction, origin), read(whole, origin))
                    y, dy = _place(
                        read(offsets, 2 * k + 1), read(fraction, origin + 1), read(whole, origin + 1)
                    )
                    corner = base + (y * width + x) * stride
                    below = corner + width * stride
                    left, right = x >= 0 and x < width, x >= -1 and x + 1 < width
                    up, down = y >= 0 and y < height, y >= -1 and y + 1 < height
                    a = _pull(value, corner, up and left, gradient, lanes)
                    b = _pull(value, corner + stride, up and right, gradient, lanes)
                    c = _pull(value, below, down and left, gradient, lanes)
                    d = _pull(value, below + stride, down and right, gradient, lanes)
                    upper, lower = share * (one - dy), share * dy
                    _push(grad_value, corner, up and left, gradient, upper * (one - dx), lanes)
                    _push(grad_value, corner + stride, up and right, gradient, upper * dx, lanes)
                    _push(grad_value, below, down and left, gradient, lower * (one - dx), lanes)
                    _push(grad_value, below + stride, down and right, gradient, lower * dx, lanes)
                    write(grad_offsets, 2 * k, upper * (b - a) + lower * (d - c))
                    write(grad_offsets, 2 * k + 1, share * ((one - dx) * (c - a) + dx * (d - b)))
                    sample = (one - dy) * ((one - dx) * a + dx * b) + dy * ((one - dx) * c + dx * d)
                    write(grad_logits, k, sample)
                    mean += share * sample
            for k in range(samples):
                write(grad_logits, row + k, read(shares, k) * (read(grad_logits, row + k) - mean))
