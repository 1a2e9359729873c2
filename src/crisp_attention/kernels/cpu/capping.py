"""Scores capped by tanh, 16 at a time (as Gemma 2 has them)."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.exponentials import exponential
from crisp_attention.kernels.cpu.vectors import FLOATS, LANES, POINTER, fma, load, splat, store

# tanh(x) = x + x³ · a polynomial in x², on |x| <= 0.625, highest power first (Cephes)
COEFFICIENTS = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
SMALL = 0.625


@intrinsic
def cap(typing, values, limit, count):
    """values[t] = limit * tanh(values[t] / limit) in place for t < count, a multiple of 16; NaN stays."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        values, limit, count = arguments
        limit = splat(builder, limit)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            at = builder.gep(values, [t])
            capped = _tanh(builder, builder.fdiv(load(builder, at), limit))
            store(builder, builder.fmul(limit, capped), at)
        return context.get_dummy_value()

    return types.void(POINTER, types.float32, types.int64), code


def _tanh(builder: Any, x: Any) -> Any:
    def constant(value: float) -> Any:
        return ir.Constant(FLOATS, [value] * LANES)

    square = builder.fmul(x, x)
    near = constant(COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        near = fma(builder, near, square, constant(coefficient))
    near = fma(builder, builder.fmul(near, square), x, x)
    negative = builder.fcmp_ordered("<", x, constant(0.0))
    size = builder.select(negative, builder.fneg(x), x)
    power = exponential(builder, builder.fmul(constant(-2.0), size))
    one = constant(1.0)
    far = builder.fdiv(builder.fsub(one, power), builder.fadd(one, power))
    far = builder.select(negative, builder.fneg(far), far)
    return builder.select(builder.fcmp_ordered("<", size, constant(SMALL)), near, far)
