"""Where the points of a query lie and how much each counts: the arithmetic before anything is gathered.

One point after another this would cost more than the gathering. So it runs over all points of a query at once, in
plain loops that LLVM turns into vector instructions: on rows of one scratch array, a fixed distance apart, with few
other arrays per loop, or LLVM cannot tell that they do not overlap.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from piip.ops.deformable import MOST_POINTS

PITCH = MOST_POINTS + 16
"""Entries between the rows of scratch arrays; a power of two would put all rows into one place of the cache."""

_LINE = 64  # bytes

# Rows of the scratch array of floats.
SHARE, FRACTION_X, FRACTION_Y, WHOLE_X, WHOLE_Y, LAST_X, LAST_Y = range(7)
LEFT, RIGHT, UPPER, LOWER = range(7, 11)
"""Weight of the pixels on either side of a point, 0 outside the map."""
LEFT_IN, RIGHT_IN, UPPER_IN, LOWER_IN = range(11, 15)
"""1 where these pixels are in the map, else 0."""
FLOAT_ROWS = 19
_FREE = 15

# Rows of the scratch array of whole numbers: the cells of the values around a point.
UPPER_LEFT, UPPER_RIGHT, LOWER_LEFT, LOWER_RIGHT, WIDTH, FIRST = range(6)
INT_ROWS = 6


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


@register_jitable
def scratch(count: int, dtype: Any) -> Any:
    """Return an array that begins at a cache line: vectors across two lines are slow to read back."""
    array = np.empty(count + _LINE, dtype)
    first = -array.ctypes.data % _LINE // array.itemsize
    return array[first : first + count]


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
def describe_levels(levels: Any, num_levels: int, points: int, heads: int, numbers: Any, cells: Any) -> None:
    """Write the size and first cell of every point's level, the same for all queries."""
    k = 0
    for _ in range(heads):
        for level in range(num_levels):
            for _ in range(points):
                numbers[LAST_Y * PITCH + k] = levels[3 * level] - 1
                numbers[LAST_X * PITCH + k] = levels[3 * level + 1] - 1
                cells[WIDTH * PITCH + k] = levels[3 * level + 1]
                cells[FIRST * PITCH + k] = levels[3 * level + 2]
                k += 1


@register_jitable
def read_reference(
    whole: Any, fraction: Any, origin: int, num_levels: int, points: int, heads: int, numbers: Any
) -> None:
    """Write the reference of a query for every point."""
    if num_levels == 1:
        for row, array in ((0, 0), (1, 1)):
            part, rest = whole[origin + array], fraction[origin + array]
            for k in range(heads * points):
                numbers[(FRACTION_X + row) * PITCH + k] = rest
                numbers[(WHOLE_X + row) * PITCH + k] = part
        return
    k = 0
    for _ in range(heads):
        for level in range(num_levels):
            place = origin + 2 * level
            for _ in range(points):
                numbers[FRACTION_X * PITCH + k] = fraction[place]
                numbers[FRACTION_Y * PITCH + k] = fraction[place + 1]
                numbers[WHOLE_X * PITCH + k] = whole[place]
                numbers[WHOLE_Y * PITCH + k] = whole[place + 1]
                k += 1


@register_jitable
def softmax(logits: Any, row: int, samples: int, heads: int, numbers: Any) -> None:
    """Write the attention weights of ``heads`` heads with ``samples`` points each."""
    tops = _FREE * PITCH
    for head in range(heads):
        first = head * samples
        top = read(logits, row + first)
        for k in range(1, samples):
            top = max(top, read(logits, row + first + k))
        for k in range(first, first + samples):
            write(numbers, tops + k, top)
    for k in range(heads * samples):
        write(numbers, SHARE * PITCH + k, exp(read(logits, row + k) - read(numbers, tops + k)))
    for head in range(heads):
        first = SHARE * PITCH + head * samples
        total = read(numbers, first)
        for k in range(first + 1, first + samples):
            total += read(numbers, k)
        for k in range(head * samples, (head + 1) * samples):
            write(numbers, tops + k, total)
    for k in range(heads * samples):
        write(numbers, SHARE * PITCH + k, read(numbers, SHARE * PITCH + k) / read(numbers, tops + k))


@register_jitable
def place(offsets: Any, row: int, count: int, numbers: Any, cells: Any) -> None:
    """Write the weights and the cells of the four pixels around each of ``count`` points.

    A pixel outside the map, or of a point that is no number, gets weight 0 and a cell inside.
    """
    _place_on_axis(offsets, 2 * row, count, numbers, cells, 0, UPPER_LEFT, UPPER_RIGHT)
    _place_on_axis(offsets, 2 * row + 1, count, numbers, cells, 1, LOWER_LEFT, LOWER_RIGHT)
    for k in range(count):
        width, first = read(cells, WIDTH * PITCH + k), read(cells, FIRST * PITCH + k)
        left, right = read(cells, UPPER_LEFT * PITCH + k), read(cells, UPPER_RIGHT * PITCH + k)
        upper = first + width * read(cells, LOWER_LEFT * PITCH + k)
        lower = first + width * read(cells, LOWER_RIGHT * PITCH + k)
        write(cells, UPPER_LEFT * PITCH + k, upper + left)
        write(cells, UPPER_RIGHT * PITCH + k, upper + right)
        write(cells, LOWER_LEFT * PITCH + k, lower + left)
        write(cells, LOWER_RIGHT * PITCH + k, lower + right)


@register_jitable
def _place_on_axis(
    offsets: Any, start: int, count: int, numbers: Any, cells: Any, axis: int, low: int, high: int
) -> None:
    """Write weights and pixels to the left and right (axis 0) or above and below (axis 1) of points."""
    one, none = numbers.dtype.type(1), numbers.dtype.type(0)
    fraction, whole, last = (FRACTION_X + axis), (WHOLE_X + axis), (LAST_X + axis)
    for k in range(count):
        position = read(offsets, start + 2 * k) + read(numbers, fraction * PITCH + k)
        below = floor(position)
        write(numbers, (_FREE + 1) * PITCH + k, position - below)
        write(numbers, (_FREE + 2) * PITCH + k, below + read(numbers, whole * PITCH + k))
    for k in range(count):
        beyond, pixel = (
            read(numbers, (_FREE + 1) * PITCH + k),
            read(numbers, (_FREE + 2) * PITCH + k),
        )
        limit = read(numbers, last * PITCH + k)
        inside, next_inside = (pixel >= 0) & (pixel <= limit), (pixel >= -1) & (pixel <= limit - 1)
        write(numbers, (LEFT + 2 * axis) * PITCH + k, one - beyond if inside else none)
        write(numbers, (RIGHT + 2 * axis) * PITCH + k, beyond if next_inside else none)
        write(numbers, (LEFT_IN + 2 * axis) * PITCH + k, one if inside else none)
        write(numbers, (RIGHT_IN + 2 * axis) * PITCH + k, one if next_inside else none)
        write(cells, low * PITCH + k, np.int32(pixel if inside else none))
        write(cells, high * PITCH + k, np.int32(pixel + 1 if next_inside else none))
