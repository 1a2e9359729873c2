"""One pass over a row of scores that lists those between two bounds, among which a threshold is looked for then.

Rows are whole vectors, whose tails are -inf.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.counts import Mass
from crisp_attention.kernels.cpu.exponentials import exponential
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INTS,
    LANES,
    POINTER,
    compress,
    fma,
    load,
    reduced,
    splat,
    store,
)

NOTHING = ir.Constant(FLOATS, None)
# differences of scores are taken to be no larger where they are multiplied with a weight of 0
FAR = ir.Constant(FLOATS, [-100.0] * LANES)


@intrinsic
def sums_about(typing, row, count, center, reach):
    """How many scores are no farther than `reach` from a center, and the sums of their differences and squares."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count, center, reach = arguments
        center, reach = splat(builder, center), splat(builder, reach)
        number = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
        sum_, squares = (cgutils.alloca_once_value(builder, NOTHING) for _ in range(2))
        below = builder.fsub(NOTHING, reach)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = builder.fsub(load(builder, builder.gep(row, [t])), center)
            inside = builder.and_(builder.fcmp_ordered(">=", x, below), builder.fcmp_ordered("<=", x, reach))
            builder.store(builder.sub(builder.load(number), builder.sext(inside, INTS)), number)
            x = builder.select(inside, x, NOTHING)
            builder.store(builder.fadd(builder.load(sum_), x), sum_)
            builder.store(fma(builder, x, x, builder.load(squares)), squares)
        found = builder.zext(reduced(builder, builder.load(number), builder.add), ir.IntType(64))
        sums = [reduced(builder, builder.load(each), builder.fadd) for each in (sum_, squares)]
        return context.make_tuple(builder, signature.return_type, [found, *sums])

    result = types.Tuple([types.int64, types.float32, types.float32])
    return result(POINTER, types.int64, types.float32, types.float32), code


def _lister(beyond: str) -> Any:
    @intrinsic
    def lister(typing, row, count, bottom, top, listed):
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, count, bottom, top, listed = arguments
            bottom, top = splat(builder, bottom), splat(builder, top)
            number = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
            taken = cgutils.alloca_once_value(builder, count.type(0))
            kind = count.type
            with cgutils.for_range_slice(builder, kind(0), count, kind(LANES), kind) as (t, _):
                x = load(builder, builder.gep(row, [t]))
                above = builder.fcmp_ordered(beyond, x, top)
                builder.store(builder.sub(builder.load(number), builder.sext(above, INTS)), number)
                keep = builder.and_(builder.fcmp_ordered(">=", x, bottom), builder.not_(above))
                builder.store(compress(builder, keep, ((x, listed),), builder.load(taken)), taken)
            found = builder.zext(reduced(builder, builder.load(number), builder.add), ir.IntType(64))
            return context.make_tuple(builder, signature.return_type, [found, builder.load(taken)])

        result = types.Tuple([types.int64, types.int64])
        return result(POINTER, types.int64, types.float32, types.float32, POINTER), code

    return lister


# How many scores are at least `top`, or larger, and how many others at least `bottom`, which are listed in order.
# `listed` needs 16 slots more than the row has.
list_below, list_within = _lister(">="), _lister(">")


def _in_fours(builder: Any, count: Any, each: Callable[[list[Any]], None]) -> None:
    """Code for all vectors of a row, four at a time and then those that are left."""
    kind = count.type
    whole = builder.and_(count, kind(-4 * LANES))
    for start, end, vectors in ((kind(0), whole, 4), (whole, count, 1)):
        with cgutils.for_range_slice(builder, start, end, kind(vectors * LANES), kind) as (t, _):
            each([builder.add(t, kind(v * LANES)) for v in range(vectors)])


@intrinsic
def list_by_mass(typing, row, weight, count, bottom, top, listed):
    """`list_below`, with the weight of the scores that are at least `top`, in float64, in place of their number."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, weight, count, bottom, top, listed = arguments
        bottom, top = splat(builder, bottom), splat(builder, top)
        mass = Mass(builder)
        taken = cgutils.alloca_once_value(builder, count.type(0))

        def each(places: list[Any]) -> None:
            held = []
            for t in places:
                x, weights = (load(builder, builder.gep(each, [t])) for each in (row, weight))
                above = builder.fcmp_ordered(">=", x, top)
                held.append(builder.select(above, weights, NOTHING))
                keep = builder.and_(builder.fcmp_ordered(">=", x, bottom), builder.not_(above))
                builder.store(compress(builder, keep, ((x, listed),), builder.load(taken)), taken)
            mass.add(held)

        _in_fours(builder, count, each)
        return context.make_tuple(builder, signature.return_type, [mass.total(), builder.load(taken)])

    result = types.Tuple([types.float64, types.int64])
    return result(POINTER, POINTER, types.int64, types.float32, types.float32, POINTER), code


@intrinsic
def masses_of(typing, row, weight, count, high):
    """Write weight[t] = exp(row[t] - high) of scores up to `high`; returns their sum, in float64, and two more.

    These are the sums of the differences, and of their squares, by weight.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, weight, count, high = arguments
        high = splat(builder, high)
        mass = Mass(builder)
        sum_, squares = (cgutils.alloca_once_value(builder, NOTHING) for _ in range(2))

        def each(places: list[Any]) -> None:
            all_ = []
            for t in places:
                x = builder.fsub(load(builder, builder.gep(row, [t])), high)
                weights = exponential(builder, x)
                store(builder, weights, builder.gep(weight, [t]))
                all_.append(weights)
                near = builder.select(builder.fcmp_ordered(">", x, FAR), x, FAR)
                part = builder.fmul(weights, near)
                builder.store(builder.fadd(builder.load(sum_), part), sum_)
                builder.store(fma(builder, part, near, builder.load(squares)), squares)
            mass.add(all_)

        _in_fours(builder, count, each)
        moments = [reduced(builder, builder.load(each), builder.fadd) for each in (sum_, squares)]
        return context.make_tuple(builder, signature.return_type, [mass.total(), *moments])

    result = types.Tuple([types.float64, types.float32, types.float32])
    return result(POINTER, POINTER, types.int64, types.float32), code
