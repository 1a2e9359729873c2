"""One pass over a row of scores around a number: how many are as large, what they weigh, and the scores next to it."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INT,
    INTS,
    LANES,
    POINTER,
    load,
    reduced,
    smaller,
    splat,
)

HALF = LANES // 2
DOUBLES = ir.VectorType(ir.DoubleType(), HALF)
NONE = ir.Constant(FLOATS, [-float("inf")] * LANES)


class Mass:
    """Code for a sum of weights in float64."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.halves = [cgutils.alloca_once_value(builder, ir.Constant(DOUBLES, None)) for _ in range(2)]

    def add(self, weights: list[Any]) -> None:
        """Add one vector, or 2, 4 or so, whose sum is taken in float32 first: of equal weights it is exact."""
        builder = self.builder
        while len(weights) > 1:
            weights = [builder.fadd(a, b) for a, b in zip(weights[::2], weights[1::2], strict=True)]
        for half, total in enumerate(self.halves):
            places = ir.Constant(ir.VectorType(INT, HALF), [*range(half * HALF, half * HALF + HALF)])
            part = builder.fpext(builder.shuffle_vector(weights[0], weights[0], places), DOUBLES)
            builder.store(builder.fadd(builder.load(total), part), total)

    def total(self) -> Any:
        one, other = (self.builder.load(half) for half in self.halves)
        return reduced(self.builder, self.builder.fadd(one, other), self.builder.fadd)


def _over(builder: Any, rows: list[Any], count: Any, each: Callable[..., None]) -> None:
    """Code for `each` vector of some rows, of the last one with -inf, or 0 in all but the first row, behind the end."""
    kind = count.type
    whole = builder.and_(count, kind(-LANES))
    with cgutils.for_range_slice(builder, kind(0), whole, kind(LANES), kind) as (t, _):
        each(*(load(builder, builder.gep(row, [t])) for row in rows))
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        left = splat(builder, builder.trunc(builder.sub(count, whole), INT))
        inside = builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), left)
        behind = [NONE, *[ir.Constant(FLOATS, None)] * (len(rows) - 1)]
        vectors = (load(builder, builder.gep(row, [whole])) for row in rows)
        each(*(builder.select(inside, x, no) for x, no in zip(vectors, behind, strict=True)))


def _around(builder: Any, row: Any, weight: Any, count: Any, middle: Any) -> list[Any]:
    middle = splat(builder, middle)
    number = cgutils.alloca_once_value(builder, ir.Constant(INTS, None))
    least = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [float("inf")] * LANES))
    greatest = cgutils.alloca_once_value(builder, NONE)
    mass = Mass(builder)

    def each(x: Any, weights: Any = None) -> None:
        above = builder.fcmp_ordered(">=", x, middle)
        builder.store(builder.sub(builder.load(number), builder.sext(above, INTS)), number)
        old = builder.load(least)
        closer = builder.and_(above, builder.fcmp_ordered("<", x, old))
        builder.store(builder.select(closer, x, old), least)
        old = builder.load(greatest)
        closer = builder.and_(builder.not_(above), builder.fcmp_ordered(">", x, old))
        builder.store(builder.select(closer, x, old), greatest)
        if weights is None:
            return
        mass.add([builder.select(above, weights, ir.Constant(FLOATS, None))])

    _over(builder, [row] if weight is None else [row, weight], count, each)
    found = [
        builder.zext(reduced(builder, builder.load(number), builder.add), ir.IntType(64)),
        reduced(builder, builder.load(least), smaller(builder)),
        reduced(builder, builder.load(greatest), smaller(builder, ">")),
    ]
    if weight is not None:
        found.append(mass.total())
    return found


@intrinsic
def around(typing, row, count, middle):
    """How many of the first `count` scores are at least `middle`; the smallest of those, and the largest other one.

    Where there is none: inf and -inf. Reads, but does not count, the rest of the last 16.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count, middle = arguments
        return context.make_tuple(builder, signature.return_type, _around(builder, row, None, count, middle))

    return types.Tuple([types.int64, types.float32, types.float32])(POINTER, types.int64, types.float32), code


@intrinsic
def mass_around(typing, row, weight, count, middle):
    """What `around` gives, and the sum of the weights of the scores that are at least `middle`, in float64."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_tuple(builder, signature.return_type, _around(builder, *arguments))

    result = types.Tuple([types.int64, types.float32, types.float32, types.float64])
    return result(POINTER, POINTER, types.int64, types.float32), code


@intrinsic
def equal_places(typing, row, value):
    """Which of 16 scores equal a value, as bits."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, value = arguments
        equal = builder.fcmp_ordered("==", load(builder, row), splat(builder, value))
        return builder.zext(builder.bitcast(equal, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(POINTER, types.float32), code
