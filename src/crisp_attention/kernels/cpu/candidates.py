"""One pass over a row of scores that lists those between two bounds, among which a threshold is looked for then.

Rows are whole vectors, whose tails are -inf.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.counts import DOUBLES, HALF
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INT,
    INTS,
    LANES,
    POINTER,
    compress,
    exponential,
    fma,
    load,
    reduced,
    splat,
    store,
)

NOTHING = ir.Constant(FLOATS, None)
# differences of scores are taken to be no larger where they are multiplied with a weight of 0
FAR = ir.Constant(FLOATS, [-100.0] * LANES)


class _Mass:
    """A sum of vectors of weights in float64."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.halves = [cgutils.alloca_once_value(builder, ir.Constant(DOUBLES, None)) for _ in range(2)]

    def add(self, weights: Any) -> None:
        builder = self.builder
        for half, total in enumerate(self.halves):
            places = ir.Constant(ir.VectorType(INT, HALF), [*range(half * HALF, half * HALF + HALF)])
            part = builder.fpext(builder.shuffle_vector(weights, weights, places), DOUBLES)
            builder.store(builder.fadd(builder.load(total), part), total)

    def total(self) -> Any:
        one, other = (self.builder.load(half) for half in self.halves)
        return reduced(self.builder, self.builder.fadd(one, other), self.builder.fadd)


@intrinsic
def list_between(typing, row, count, bottom, top, listed):
    """How many scores are at least `top`, and how many others at least `bottom`, which are listed in order.

    `listed` needs 16 slots more than the row has.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count, bottom, top, listed = arguments
        bottom, top = splat(builder, bottom), splat(builder, top)
        number = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
        taken = cgutils.alloca_once_value(builder, count.type(0))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = load(builder, builder.gep(row, [t]))
            above = builder.fcmp_ordered(">=", x, top)
            builder.store(builder.sub(builder.load(number), builder.sext(above, INTS)), number)
            keep = builder.and_(builder.fcmp_ordered(">=", x, bottom), builder.fcmp_ordered("<", x, top))
            builder.store(compress(builder, keep, ((x, listed),), builder.load(taken)), taken)
        found = builder.zext(reduced(builder, builder.load(number), builder.add), ir.IntType(64))
        return context.make_tuple(builder, signature.return_type, [found, builder.load(taken)])

    result = types.Tuple([types.int64, types.int64])
    return result(POINTER, types.int64, types.float32, types.float32, POINTER), code


@intrinsic
def list_masses(typing, row, weight, count, bottom, top, listed, masses):
    """The weight of the scores that are at least `top`, in float64, and the number of others at least `bottom`.

    Those are listed with their weights. Both lists need 16 slots more than the row has.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, weight, count, bottom, top, listed, masses = arguments
        bottom, top = splat(builder, bottom), splat(builder, top)
        mass = _Mass(builder)
        taken = cgutils.alloca_once_value(builder, count.type(0))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x, weights = load(builder, builder.gep(row, [t])), load(builder, builder.gep(weight, [t]))
            mass.add(builder.select(builder.fcmp_ordered(">=", x, top), weights, NOTHING))
            keep = builder.and_(builder.fcmp_ordered(">=", x, bottom), builder.fcmp_ordered("<", x, top))
            pairs = ((x, listed), (weights, masses))
            builder.store(compress(builder, keep, pairs, builder.load(taken)), taken)
        return context.make_tuple(builder, signature.return_type, [mass.total(), builder.load(taken)])

    result = types.Tuple([types.float64, types.int64])
    return result(POINTER, POINTER, types.int64, types.float32, types.float32, POINTER, POINTER), code


@intrinsic
def masses_of(typing, row, weight, count, high):
    """Write weight[t] = exp(row[t] - high) of scores up to `high`; returns their sum, in float64, and two more.

    These are the sums of the differences, and of their squares, by weight.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, weight, count, high = arguments
        high = splat(builder, high)
        mass = _Mass(builder)
        sum_, squares = (cgutils.alloca_once_value(builder, NOTHING) for _ in range(2))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = builder.fsub(load(builder, builder.gep(row, [t])), high)
            weights = exponential(builder, x)
            store(builder, weights, builder.gep(weight, [t]))
            mass.add(weights)
            near = builder.select(builder.fcmp_ordered(">", x, FAR), x, FAR)
            part = builder.fmul(weights, near)
            builder.store(builder.fadd(builder.load(sum_), part), sum_)
            builder.store(fma(builder, part, near, builder.load(squares)), squares)
        moments = [reduced(builder, builder.load(each), builder.fadd) for each in (sum_, squares)]
        return context.make_tuple(builder, signature.return_type, [mass.total(), *moments])

    result = types.Tuple([types.float64, types.float32, types.float32])
    return result(POINTER, POINTER, types.int64, types.float32), code


@intrinsic
def exponentials_from(typing, row, count, threshold, shift):
    """row[t] = exp(row[t] - shift) in place of scores that are at least a threshold, 0 of others; returns the sum.

    Differences are at most 0; below -87 the result is 0.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, count, threshold, shift = arguments
        threshold, shift = splat(builder, threshold), splat(builder, shift)
        total = cgutils.alloca_once_value(builder, NOTHING)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            at = builder.gep(row, [t])
            x = load(builder, at)
            kept = builder.fcmp_ordered(">=", x, threshold)
            result = builder.select(kept, exponential(builder, builder.fsub(x, shift)), NOTHING)
            store(builder, result, at)
            builder.store(builder.fadd(builder.load(total), result), total)
        return reduced(builder, builder.load(total), builder.fadd)

    return types.float32(POINTER, types.int64, types.float32, types.float32), code
