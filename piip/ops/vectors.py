"""Short vectors in numba: D numbers in registers, D known from the length of a tuple.

numba has no vector type; LLVM has, but is good only at powers of two: a vector of D numbers is kept as parts of 16,
8, 4, 2 and 1.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LONGEST_PART = 16


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
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)


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
def dot(typing_context: Any, one: Any, other: Any) -> Any:
    """Return the sum of products."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total: Any = None
        for number, part in enumerate(_parts(one)):
            x, y = (builder.extract_value(vector, number) for vector in args)
            start = ir.Constant(part.element, 0.0) if total is None else total
            product = builder.fmul(x, y)
            total = _call(
                builder, "vector.reduce.fadd", part, part.element, start, product, fastmath=("reassoc",)
            )
        return total

    return one.element(one, other), generate
