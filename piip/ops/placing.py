"""Where the points of a query lie and how much each counts: the arithmetic before anything is gathered.

One point after another this would cost more than the gathering. So it runs over all points of some queries at
once, in plain loops that LLVM turns into vector instructions: on rows of a single scratch array, a fixed distance
apart, or LLVM could not tell that they do not overlap. Whole numbers are kept in the space of a float, as they are.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from piip.ops.deformable import MOST_POINTS
from piip.ops.vectors import LONGEST_PART, groups_fit, largest_of_groups, separate_pairs, sum_groups

PITCH = MOST_POINTS + 16
"""Entries between the rows of the scratch array; a power of two would put all rows into one place of the cache."""

_LINE = 64  # bytes

# Rows of the scratch array. Offsets take two of them.
SHARE, _TOTAL, _OFFSETS, _SECOND, _FRACTION_X, _FRACTION_Y, _WHOLE_X, _WHOLE_Y, _LAST_X, _LAST_Y = range(10)
LEFT, RIGHT, UPPER, LOWER = range(10, 14)
"""Weight of the pixels on either side of a point, 0 outside the map."""
LEFT_IN, RIGHT_IN, UPPER_IN, LOWER_IN = range(14, 18)
"""1 where these pixels are in the map, else 0."""
WEIGHTS = 18
"""Weight of the four pixels around a point, the attention included, in the order of `CELLS`."""
CELLS = 22
"""Cells of the values around a point, as whole numbers: upper left, upper right, lower left, lower right."""
PULL = 26
"""For the backward pass: what more attention to a point would change."""
_WIDTH, _FIRST, _X, _Y = range(27, 31)
ROWS = 31


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
def get(numbers: Any, row: int, k: int) -> Any:
    """Return entry ``k`` of a row of the scratch array."""
    return read(numbers, row * PITCH + k)


@register_jitable
def put(numbers: Any, row: int, k: int, number: Any) -> None:
    """Set entry ``k`` of a row of the scratch array."""
    write(numbers, row * PITCH + k, number)


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


@intrinsic
def whole_number(typing_context: Any, number: Any) -> Any:
    """Return a float that is whole as a signed integer of the same width."""
    kind = types.Integer.from_bitwidth(number.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fptosi(args[0], ir.IntType(kind.bitwidth))

    return kind(number), generate


@intrinsic
def _read_whole(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the integer that `_write_whole` has put into a flat array of floats."""
    kind = types.Integer.from_bitwidth(array.dtype.bitwidth)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load(
            builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(kind.bitwidth).as_pointer())
        )

    return kind(array, index), generate


@intrinsic
def _write_whole(typing_context: Any, array: Any, index: Any, number: Any) -> Any:
    """Put an integer into a flat array of floats, as one of their width."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        kind = ir.IntType(array.dtype.bitwidth)
        number_as_wide = (
            builder.trunc(args[2], kind) if number.bitwidth > kind.width else builder.sext(args[2], kind)
        )
        builder.store(number_as_wide, builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer()))
        return context.get_dummy_value()

    return types.void(array, index, number), generate


@register_jitable
def get_whole(numbers: Any, row: int, k: int) -> Any:
    """Return entry ``k`` of a row of whole numbers."""
    return _read_whole(numbers, row * PITCH + k)


@register_jitable
def put_whole(numbers: Any, row: int, k: int, number: Any) -> None:
    """Set entry ``k`` of a row of whole numbers."""
    _write_whole(numbers, row * PITCH + k, number)


@register_jitable
def describe_levels(levels: Any, num_levels: int, points: int, rows: int, numbers: Any) -> None:
    """Write the size and first cell of the level of every point of ``rows`` heads, the same for all queries."""
    k = 0
    for _ in range(rows):
        for level in range(num_levels):
            height, width, first = levels[3 * level], levels[3 * level + 1], levels[3 * level + 2]
            for _ in range(points):
                put(numbers, _LAST_Y, k, numbers.dtype.type(height - 1))
                put(numbers, _LAST_X, k, numbers.dtype.type(width - 1))
                put_whole(numbers, _WIDTH, k, width)
                put_whole(numbers, _FIRST, k, first)
                k += 1


@register_jitable
def read_query(
    offsets: Any,
    logits: Any,
    whole: Any,
    fraction: Any,
    row: int,
    origin: int,
    num_levels: int,
    points: int,
    heads: int,
    start: int,
    numbers: Any,
) -> None:
    """Write logits, offsets and reference of a query for all points of its heads, from entry ``start`` on."""
    count = heads * num_levels * points
    for k in range(count):
        put(numbers, SHARE, start + k, read(logits, row + k))
    for k in range(2 * count):
        put(numbers, _OFFSETS, 2 * start + k, read(offsets, 2 * row + k))
    runs, length = (1, heads * points) if num_levels == 1 else (heads * num_levels, points)
    for run in range(runs):
        place = origin + 2 * (run % num_levels)
        first = start + run * length
        x, y = read(fraction, place), read(fraction, place + 1)
        pixel_x, pixel_y = numbers.dtype.type(read(whole, place)), numbers.dtype.type(read(whole, place + 1))
        for k in range(first, first + length):
            put(numbers, _FRACTION_X, k, x)
            put(numbers, _FRACTION_Y, k, y)
            put(numbers, _WHOLE_X, k, pixel_x)
            put(numbers, _WHOLE_Y, k, pixel_y)


def softmax(rows: Any, slots: Any, numbers: Any) -> Any:
    """Turn the logits of ``rows`` heads, with as many points as ``slots`` has entries, into attention weights."""
    raise NotImplementedError("numba compiles what follows")


@overload(softmax)
def _softmax(rows: Any, slots: Any, numbers: Any) -> Any:
    return _softmax_of_groups if groups_fit(slots) else _softmax_of_rows


@register_jitable
def _softmax_of_groups(rows: Any, slots: Any, numbers: Any) -> Any:
    """Several heads at once, in vectors."""
    count = rows * len(slots)
    for k in range(0, count, LONGEST_PART):
        largest_of_groups(numbers, SHARE * PITCH + k, _TOTAL * PITCH + k, slots)
    for k in range(count):
        put(numbers, SHARE, k, exp(get(numbers, SHARE, k) - get(numbers, _TOTAL, k)))
    for k in range(0, count, LONGEST_PART):
        sum_groups(numbers, SHARE * PITCH + k, _TOTAL * PITCH + k, slots)
    for k in range(count):
        put(numbers, SHARE, k, get(numbers, SHARE, k) / get(numbers, _TOTAL, k))


@register_jitable
def _softmax_of_rows(rows: Any, slots: Any, numbers: Any) -> Any:
    """One head after the other, where its number of points does not divide a vector's length."""
    for row in range(rows):
        first = SHARE * PITCH + row * len(slots)
        top, total = read(numbers, first), numbers.dtype.type(0)
        for k in range(first + 1, first + len(slots)):
            top = max(top, read(numbers, k))
        for k in range(first, first + len(slots)):
            write(numbers, k, exp(read(numbers, k) - top))
            total += read(numbers, k)
        for k in range(first, first + len(slots)):
            write(numbers, k, read(numbers, k) / total)


@register_jitable
def place(count: int, numbers: Any) -> None:
    """Write the weights and the cells of the four pixels around each of ``count`` points.

    A pixel outside the map, or of a point that is no number, gets weight 0 and a cell inside.
    """
    for k in range(0, count, LONGEST_PART):
        separate_pairs(numbers, _OFFSETS * PITCH + 2 * k, _X * PITCH + k, _Y * PITCH + k)
    for k in range(count):
        left, right, left_in, right_in, column, next_column = _neighbours(0, k, numbers)
        upper, lower, upper_in, lower_in, line, next_line = _neighbours(1, k, numbers)
        put(numbers, LEFT, k, left)
        put(numbers, RIGHT, k, right)
        put(numbers, UPPER, k, upper)
        put(numbers, LOWER, k, lower)
        put(numbers, LEFT_IN, k, left_in)
        put(numbers, RIGHT_IN, k, right_in)
        put(numbers, UPPER_IN, k, upper_in)
        put(numbers, LOWER_IN, k, lower_in)
        share = get(numbers, SHARE, k)
        above, below = share * upper, share * lower
        put(numbers, WEIGHTS, k, above * left)
        put(numbers, WEIGHTS + 1, k, above * right)
        put(numbers, WEIGHTS + 2, k, below * left)
        put(numbers, WEIGHTS + 3, k, below * right)
        width, first = get_whole(numbers, _WIDTH, k), get_whole(numbers, _FIRST, k)
        put_whole(numbers, CELLS, k, first + width * line + column)
        put_whole(numbers, CELLS + 1, k, first + width * line + next_column)
        put_whole(numbers, CELLS + 2, k, first + width * next_line + column)
        put_whole(numbers, CELLS + 3, k, first + width * next_line + next_column)


@register_jitable
def _neighbours(axis: int, k: int, numbers: Any) -> Any:
    """Return weights, whether they are in the map, and positions of the pixels around a point, along x or y."""
    one, none = numbers.dtype.type(1), numbers.dtype.type(0)
    position = get(numbers, _X + axis, k) + get(numbers, _FRACTION_X + axis, k)
    pixel = floor(position) + get(numbers, _WHOLE_X + axis, k)
    beyond, last = position - floor(position), get(numbers, _LAST_X + axis, k)
    here, there = (pixel >= 0) & (pixel <= last), (pixel >= -1) & (pixel <= last - 1)
    return (
        one - beyond if here else none,
        beyond if there else none,
        one if here else none,
        one if there else none,
        whole_number(pixel if here else none),
        whole_number(pixel + one if there else none),
    )
