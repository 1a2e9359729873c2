"""Adding rows of float32 up in float64, as LLVM code: automatic vectorisation takes three times as long."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.native import DOUBLES
from crisp_attention.kernels.cpu.vectors import INDICES, LANES, POINTER, load

WIDE = ir.VectorType(ir.DoubleType(), LANES)


@intrinsic(prefer_literal=True)
def gather_exactly(typing, out, rows, stride, index, count, width):
    """out[:width] += the sum of rows[index[t] * stride :][:width] over t < count; `width` is literal, 16 divides it."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, rows, stride, index, count, _ = arguments
        places = range(0, types_.args[-1].literal_value, LANES)

        def goal(place: int) -> Any:
            moved = builder.gep(out, [ir.Constant(ir.IntType(64), place)])
            return builder.bitcast(moved, WIDE.as_pointer())

        sums = [cgutils.alloca_once_value(builder, builder.load(goal(place), align=8)) for place in places]
        with cgutils.for_range(builder, count) as loop:
            number = builder.sext(builder.load(builder.gep(index, [loop.index])), stride.type)
            row = builder.gep(rows, [builder.mul(stride, number)])
            for place, total in zip(places, sums, strict=True):
                more = builder.fpext(load(builder, row, place), WIDE)
                builder.store(builder.fadd(builder.load(total), more), total)
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.load(total), goal(place), align=8)
        return context.get_dummy_value()

    return types.void(DOUBLES, POINTER, types.int64, INDICES, types.int64, width), code
