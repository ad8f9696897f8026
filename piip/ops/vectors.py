"""Short vectors in numba: D numbers in registers, D known from the length of a tuple.

numba has no vector type; LLVM has, and turns any length into the machine's own instructions.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model


class Vector(types.Type):
    """D numbers of one type."""

    def __init__(self, element: types.Float, length: int) -> None:
        super().__init__(name=f"vector({element}, {length})")
        self.element, self.length = element, length


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _llvm_type(kind))


def _llvm_type(kind: Vector) -> ir.VectorType:
    return ir.VectorType(ir.DoubleType() if kind.element.bitwidth == 64 else ir.FloatType(), kind.length)


def _vector_of(lanes: types.UniTuple) -> Vector:
    return Vector(lanes.dtype, lanes.count)


def _splat(builder: Any, number: Any, kind: ir.VectorType) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)


def _row(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: ir.Type) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


@intrinsic
def zeros(typing_context: Any, lanes: Any) -> Any:
    """Return D zeros."""
    kind = _vector_of(lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm = _llvm_type(kind)
        return ir.Constant(llvm, [0.0] * llvm.count)

    return kind(lanes), generate


@intrinsic
def load(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Return D neighbours of a flat array from an index; uint16 arrays hold bfloat16."""
    kind = _vector_of(lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm = _llvm_type(kind)
        half = array.dtype == types.uint16
        stored = ir.VectorType(ir.IntType(16), llvm.count) if half else llvm
        pointer = _row(context, builder, array, args[0], args[1], stored)
        bits = builder.load(pointer, align=array.dtype.bitwidth // 8)
        if not half:
            return bits
        wide = ir.VectorType(ir.IntType(32), llvm.count)
        shifted = builder.shl(builder.zext(bits, wide), ir.Constant(wide, [16] * llvm.count))
        return builder.bitcast(shifted, llvm)

    return kind(array, index, lanes), generate


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write D neighbours of a flat array from an index."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _row(context, builder, array, args[0], args[1], _llvm_type(vector))
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@intrinsic
def scaled_sum(typing_context: Any, total: Any, vector: Any, number: Any) -> Any:
    """Return ``total + vector * number``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm = _llvm_type(total)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(llvm, [llvm] * 3), f"llvm.fma.v{llvm.count}{_suffix(llvm)}"
        )
        return builder.call(fma, [args[1], _splat(builder, args[2], llvm), args[0]])

    return total(total, vector, total.element), generate


@intrinsic
def scaled(typing_context: Any, vector: Any, number: Any) -> Any:
    """Return ``vector * number``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(args[0], _splat(builder, args[1], _llvm_type(vector)))

    return vector(vector, vector.element), generate


@intrinsic
def dot(typing_context: Any, one: Any, other: Any) -> Any:
    """Return the sum of products."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm = _llvm_type(one)
        product = builder.fmul(args[0], args[1])
        reduce = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(llvm.element, [llvm.element, llvm]),
            f"llvm.vector.reduce.fadd.v{llvm.count}{_suffix(llvm)}",
        )
        return builder.call(reduce, [ir.Constant(llvm.element, 0.0), product], fastmath=("reassoc",))

    return one.element(one, other), generate


def _suffix(llvm: ir.VectorType) -> str:
    return "f64" if isinstance(llvm.element, ir.DoubleType) else "f32"
