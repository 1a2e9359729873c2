"""GELU of what a panel has just computed, while it is in the first cache."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.vectors import FLOAT, LANES, POINTER

# erf(z) = z · P(z²) / Q(z²) for |z| <= 4, and ±1 in float32 beyond; highest power first (Eigen's generic_fast_erf)
P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


@intrinsic(prefer_literal=True)
def gelu(typing, out, out_row, rows, width):
    """out[r, c] = GELU(out[r, c]), that with the error function, for r < rows, c < width."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, out_row, rows, _ = arguments
        width = types_.args[-1].literal_value
        kind = ir.VectorType(FLOAT, min(width, LANES))
        with cgutils.for_range(builder, rows) as loop:
            row = builder.gep(out, [builder.mul(out_row, loop.index)])
            for column in range(0, width, kind.count):
                place = builder.gep(row, [ir.Constant(ir.IntType(64), column)])
                at = builder.bitcast(place, kind.as_pointer())
                builder.store(_gelu(builder, builder.load(at, align=4)), at, align=4)
        return context.get_dummy_value()

    return types.void(POINTER, types.int64, types.int64, width), code


def _gelu(builder: Any, x: Any) -> Any:
    kind = x.type

    def constant(value: float) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    def fma(*factors: Any) -> Any:
        name = f"llvm.fmuladd.v{kind.count}f32"
        called = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(called, factors)

    def polynomial(coefficients: tuple[float, ...], at: Any) -> Any:
        total = constant(coefficients[0])
        for each in coefficients[1:]:
            total = fma(total, at, constant(each))
        return total

    z = builder.fmul(x, constant(0.5**0.5))
    for order, bound in (("<", -4.0), (">", 4.0)):
        # NaN is not ordered, and stays
        z = builder.select(builder.fcmp_ordered(order, z, constant(bound)), constant(bound), z)
    square = builder.fmul(z, z)
    erf = builder.fdiv(builder.fmul(z, polynomial(P, square)), polynomial(Q, square))
    half = builder.fmul(x, constant(0.5))
    return fma(half, erf, half)
