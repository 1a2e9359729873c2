"""Exponentials of rows of scores, as vector code."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.processor import FEATURES
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INT,
    INTS,
    LANES,
    POINTER,
    call,
    constant,
    fma,
    lane_sum,
    load,
    rounded,
    splat,
    store,
)

# whether one instruction multiplies with powers of two
SCALES = "+avx512f" in FEATURES
# e ** r on |r| <= ln(2) / 2, highest power first, to a relative error of 4.4e-9 (fitted)
COEFFICIENTS = (
    1.3814466740e-3,
    8.3687804291e-3,
    4.1668394217e-2,
    1.6666520108e-1,
    4.9999993412e-1,
    1.0,
    1.0,
)
LOWEST = -87.0


@intrinsic
def exponentials(typing, goal, values, shift, count):
    """goal[t] = exp(values[t] - shift) for every t < count, maybe in place; returns their sum.

    Differences are at most 0; below -87 the result is 0. Both have room up to the next multiple of 16, which is
    overwritten in the goal.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        goal, values, shift, count = arguments
        shift = splat(builder, shift)
        total = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None))
        lane = ir.Constant(INTS, list(range(LANES)))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = builder.fsub(load(builder, builder.gep(values, [t])), shift)
            result = exponential(builder, x)
            left = splat(builder, builder.trunc(builder.sub(count, t), INT))
            inside = builder.icmp_signed("<", lane, left)
            result = builder.select(inside, result, ir.Constant(FLOATS, None))
            store(builder, result, builder.gep(goal, [t]))
            builder.store(builder.fadd(builder.load(total), result), total)
        return lane_sum(builder, builder.load(total))

    return types.float32(POINTER, POINTER, types.float32, types.int64), code


@intrinsic
def exponentials_from(typing, row, count, threshold, shift):
    """row[t] = exp(row[t] - shift) in place of scores that are at least a threshold, 0 of others; returns the sum.

    As in `exponentials`, with a `count` of whole vectors.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, count, threshold, shift = arguments
        threshold, shift = splat(builder, threshold), splat(builder, shift)
        zeros = ir.Constant(FLOATS, None)
        total = cgutils.alloca_once_value(builder, zeros)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            at = builder.gep(row, [t])
            x = load(builder, at)
            kept = builder.fcmp_ordered(">=", x, threshold)
            result = builder.select(kept, exponential(builder, builder.fsub(x, shift)), zeros)
            store(builder, result, at)
            builder.store(builder.fadd(builder.load(total), result), total)
        return lane_sum(builder, builder.load(total))

    return types.float32(POINTER, types.int64, types.float32, types.float32), code


def exponential(builder: Any, x: Any) -> Any:
    """Code for e ** x of a vector, at most 0; below -87 it is 0."""
    turns = builder.fmul(x, constant(1.44269504088896341))
    n = rounded(builder, turns)
    rest = fma(builder, n, constant(-0.693359375), x)
    rest = fma(builder, n, constant(2.12194440e-4), rest)
    result = constant(COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        result = fma(builder, result, rest, constant(coefficient))
    enough = builder.fcmp_unordered(">=", x, constant(LOWEST))
    if SCALES:
        zeros, every = constant(0.0), ir.Constant(ir.IntType(LANES), -1)
        name, current = "llvm.x86.avx512.mask.scalef.ps.512", INT(4)
        return builder.select(enough, call(builder, name, FLOATS, [result, n, zeros, every, current]), zeros)
    whole = builder.fptosi(builder.select(enough, n, constant(0.0)), INTS)
    # NaN has no whole part: its exponent is left alone, and NaN it stays
    power = builder.shl(builder.add(whole, ir.Constant(INTS, [127] * LANES)), ir.Constant(INTS, [23] * LANES))
    known = builder.fcmp_ordered("ord", x, x)
    power = builder.select(known, builder.bitcast(power, FLOATS), constant(1.0))
    return builder.select(enough, builder.fmul(result, power), constant(0.0))
