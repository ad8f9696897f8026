"""Short vectors in numba: D numbers in registers, D known from the length of a tuple.

numba has no vector type; LLVM has, but is good only at powers of two: a vector of D numbers is kept as parts of 16,
8, 4, 2 and 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LONGEST_PART = 16
"""Numbers in a register of 512 bits, if they have 32."""


class Vector(types.Type):
    """D numbers of one type."""

    def __init__(self, element: types.Float, length: int) -> None:
        super().__init__(name=f"vector({element}, {length})")
        self.element, self.length = element, length


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.LiteralStructType(_parts(kind)))


def _parts(kind: Vector) -> list[ir.VectorType]:
    """Return the LLVM types of the parts, longest first."""
    element = ir.DoubleType() if kind.element.bitwidth == 64 else ir.FloatType()
    parts, left, length = [], kind.length, LONGEST_PART
    while left:
        if length <= left:
            parts.append(ir.VectorType(element, length))
            left -= length
        else:
            length //= 2
    return parts


def _each(builder: Any, kind: Vector, compute: Callable[..., Any], *vectors: Any) -> Any:
    """Return the vector whose parts are computed from an offset, a type, and the parts of other vectors."""
    result: Any = ir.Constant(ir.LiteralStructType(_parts(kind)), ir.Undefined)
    first = 0
    for number, part in enumerate(_parts(kind)):
        inputs = [builder.extract_value(vector, number) for vector in vectors]
        result = builder.insert_value(result, compute(first, part, *inputs), number)
        first += part.count
    return result


def _vector_of(lanes: types.UniTuple) -> Vector:
    return Vector(lanes.dtype, lanes.count)


def _splat(builder: Any, number: Any, kind: ir.VectorType) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return _shuffled(builder, single, single, [0] * kind.count)


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any, first: int, kind: Any) -> Any:
    """Return the pointer to a part of the numbers from an index of a flat array."""
    data = context.make_array(array_type)(context, builder, array).data
    start = builder.add(index, ir.Constant(index.type, first))
    return builder.bitcast(builder.gep(data, [start]), kind.as_pointer())


def _call(builder: Any, name: str, kind: ir.VectorType, result: Any, *inputs: Any, **options: Any) -> Any:
    """Call an LLVM intrinsic that comes for every vector type."""
    suffix = f"v{kind.count}" + ("f64" if isinstance(kind.element, ir.DoubleType) else "f32")
    function_type = ir.FunctionType(result, [value.type for value in inputs])
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.{suffix}")
    return builder.call(function, inputs, **options)


@intrinsic
def zeros(typing_context: Any, lanes: Any) -> Any:
    """Return D zeros."""
    kind = _vector_of(lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _each(builder, kind, lambda first, part: ir.Constant(part, [0.0] * part.count))

    return kind(lanes), generate


@intrinsic
def load(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Return D neighbours of a flat array from an index; uint16 arrays hold bfloat16."""
    kind = _vector_of(lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def part_of(first: int, part: ir.VectorType) -> Any:
            half = array.dtype == types.uint16
            stored = ir.VectorType(ir.IntType(16), part.count) if half else part
            pointer = _place(context, builder, array, args[0], args[1], first, stored)
            bits = builder.load(pointer, align=array.dtype.bitwidth // 8)
            if not half:
                return bits
            wide = ir.VectorType(ir.IntType(32), part.count)
            shifted = builder.shl(builder.zext(bits, wide), ir.Constant(wide, [16] * part.count))
            return builder.bitcast(shifted, part)

        return _each(builder, kind, part_of)

    return kind(array, index, lanes), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write D neighbours of a flat array from an index."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def write(first: int, part: ir.VectorType, value: Any) -> Any:
            pointer = _place(context, builder, array, args[0], args[1], first, part)
            builder.store(value, pointer, align=array.dtype.bitwidth // 8)
            return value

        _each(builder, vector, write, args[2])
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@intrinsic
def scaled_sum(typing_context: Any, total: Any, vector: Any, number: Any) -> Any:
    """Return ``total + vector * number``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def part_of(first: int, part: ir.VectorType, added: Any, factor: Any) -> Any:
            return _call(builder, "fma", part, part, factor, _splat(builder, args[2], part), added)

        return _each(builder, total, part_of, args[0], args[1])

    return total(total, vector, total.element), generate


@intrinsic
def write_dots(
    typing_context: Any, array: Any, index: Any, one: Any, first: Any, second: Any, third: Any, fourth: Any
) -> Any:
    """Write four neighbours: the sums of products of a vector with each of four others."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = [_four_sums(builder, one, args[2], other) for other in args[3:]]
        upper = _crossed(builder, rows[0], rows[1], (0, 4, 1, 5), (2, 6, 3, 7))
        lower = _crossed(builder, rows[2], rows[3], (0, 4, 1, 5), (2, 6, 3, 7))
        sums = _crossed(builder, upper, lower, (0, 1, 4, 5), (2, 3, 6, 7))
        pointer = _place(context, builder, array, args[0], args[1], 0, sums.type)
        builder.store(sums, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, one, first, second, third, fourth), generate


def _four_sums(builder: Any, kind: Vector, one: Any, other: Any) -> Any:
    """Return four numbers whose sum is that of all products of two vectors."""
    total: Any = None
    for number, part in enumerate(_parts(kind)):
        sums = builder.fmul(builder.extract_value(one, number), builder.extract_value(other, number))
        count = part.count
        while count > 4:
            count //= 2
            sums = _crossed(builder, sums, sums, range(count), range(count, 2 * count))
        if count < 4:
            sums = _shuffled(
                builder, sums, ir.Constant(part, [0.0] * count), [0, 1, 2, 3][:count] + [count] * (4 - count)
            )
        total = sums if total is None else builder.fadd(total, sums)
    return total


def _crossed(builder: Any, one: Any, other: Any, left: Sequence[int], right: Sequence[int]) -> Any:
    """Return the sum of two choices from the numbers of two vectors."""
    return builder.fadd(_shuffled(builder, one, other, left), _shuffled(builder, one, other, right))


def _shuffled(builder: Any, one: Any, other: Any, order: Sequence[int]) -> Any:
    """Return numbers chosen from two vectors, counted through."""
    return builder.shuffle_vector(
        one, other, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
    )


def groups_fit(slots: types.UniTuple) -> bool:
    """Return whether groups of as many numbers as ``slots`` has entries fill a part without rest."""
    return LONGEST_PART % slots.count == 0


def _whole_part(context: Any, builder: Any, array_type: Any, array: Any, index: Any, first: int = 0) -> Any:
    """Return the pointer to 16 numbers of a flat array."""
    part = _parts(Vector(array_type.dtype, LONGEST_PART))[0]
    return _place(context, builder, array_type, array, index, first, part)


def _over_groups(array: Any, slots: Any, combine: Callable[..., Any]) -> Callable[..., Any]:
    """Return code that gives each of 16 numbers what all numbers of its group are combined to."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        align = array.dtype.bitwidth // 8
        group = builder.load(_whole_part(context, builder, array, args[0], args[1]), align=align)
        distance = 1
        while distance < slots.count:
            partners = [k ^ distance for k in range(LONGEST_PART)]
            group = combine(builder, group, _shuffled(builder, group, group, partners))
            distance *= 2
        builder.store(group, _whole_part(context, builder, array, args[0], args[2]), align=align)
        return context.get_dummy_value()

    return generate


@intrinsic
def sum_groups(typing_context: Any, array: Any, source: Any, target: Any, slots: Any) -> Any:
    """Write 16 numbers: the sum of the group that each number belongs to."""
    generate = _over_groups(array, slots, lambda builder, one, other: builder.fadd(one, other))
    return types.void(array, source, target, slots), generate


@intrinsic
def largest_of_groups(typing_context: Any, array: Any, source: Any, target: Any, slots: Any) -> Any:
    """Write 16 numbers: the largest of the group that each number belongs to."""

    def larger(builder: Any, one: Any, other: Any) -> Any:
        return builder.select(builder.fcmp_unordered(">", one, other), one, other)

    return types.void(array, source, target, slots), _over_groups(array, slots, larger)


@intrinsic
def separate_pairs(typing_context: Any, array: Any, source: Any, firsts: Any, seconds: Any) -> Any:
    """Write the first numbers of 16 pairs to one place and the second ones to another."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, start, *targets = args
        align = array.dtype.bitwidth // 8
        pairs, more = (
            builder.load(_whole_part(context, builder, array, data, start, first), align=align)
            for first in (0, LONGEST_PART)
        )
        for parity, target in enumerate(targets):
            chosen = _shuffled(builder, pairs, more, range(parity, 2 * LONGEST_PART, 2))
            builder.store(chosen, _whole_part(context, builder, array, data, target), align=align)
        return context.get_dummy_value()

    return types.void(array, source, firsts, seconds), generate
