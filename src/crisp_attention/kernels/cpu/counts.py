"""One pass over a row of scores around a number: how many are as large, what they weigh, and the scores next to it."""

from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INDICES,
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
MOST, NONE = (ir.Constant(FLOATS, [value] * LANES) for value in (float("inf"), -float("inf")))
WAYS = 4


def halves(builder: Any, x: Any) -> list[Any]:
    """A vector in float64."""
    places = [ir.Constant(ir.VectorType(INT, HALF), [*range(first, first + HALF)]) for first in (0, HALF)]
    return [builder.fpext(builder.shuffle_vector(x, x, each), DOUBLES) for each in places]


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
        for part, total in zip(halves(builder, weights[0]), self.halves, strict=True):
            builder.store(builder.fadd(builder.load(total), part), total)

    def total(self) -> Any:
        one, other = (self.builder.load(half) for half in self.halves)
        return reduced(self.builder, self.builder.fadd(one, other), self.builder.fadd)


def _over(builder: Any, rows: list[Any], count: Any, each: Callable[..., None]) -> None:
    """Code for `each` vector of some rows, of the last one with -inf, or 0 in all but the first row, behind the end.

    `each` is told which of `WAYS` accumulators to add to: one alone would wait for itself.
    """
    kind = count.type
    most, whole = builder.and_(count, kind(-LANES * WAYS)), builder.and_(count, kind(-LANES))
    with cgutils.for_range_slice(builder, kind(0), most, kind(LANES * WAYS), kind) as (t, _):
        for way in range(WAYS):
            place = builder.add(t, kind(way * LANES))
            each(way, *(load(builder, builder.gep(row, [place])) for row in rows))
    with cgutils.for_range_slice(builder, most, whole, kind(LANES), kind) as (t, _):
        each(0, *(load(builder, builder.gep(row, [t])) for row in rows))
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        left = splat(builder, builder.trunc(builder.sub(count, whole), INT))
        inside = builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), left)
        behind = [NONE, *[ir.Constant(FLOATS, None)] * (len(rows) - 1)]
        vectors = (load(builder, builder.gep(row, [whole])) for row in rows)
        each(0, *(builder.select(inside, x, no) for x, no in zip(vectors, behind, strict=True)))


def _around(builder: Any, row: Any, weight: Any, count: Any, middle: Any) -> list[Any]:
    middle = splat(builder, middle)

    def accumulators(first: Any) -> list[Any]:
        return [cgutils.alloca_once_value(builder, first) for _ in range(WAYS)]

    numbers, masses = accumulators(ir.Constant(INTS, None)), [Mass(builder) for _ in range(WAYS)]
    least, greatest = accumulators(MOST), accumulators(NONE)
    below, beyond = smaller(builder), smaller(builder, ">")

    def each(way: int, x: Any, weights: Any = None) -> None:
        above = builder.fcmp_ordered(">=", x, middle)
        number = numbers[way]
        builder.store(builder.sub(builder.load(number), builder.sext(above, INTS)), number)
        candidates = builder.select(above, x, MOST), builder.select(above, NONE, x)
        for closest, candidate, nearer in zip(
            (least[way], greatest[way]), candidates, (below, beyond), strict=True
        ):
            builder.store(nearer(candidate, builder.load(closest)), closest)
        if weights is None:
            return
        masses[way].add([builder.select(above, weights, ir.Constant(FLOATS, None))])

    _over(builder, [row] if weight is None else [row, weight], count, each)

    def together(found: list[Any], combine: Callable[[Any, Any], Any]) -> Any:
        return reduced(builder, reduce(combine, [builder.load(each) for each in found]), combine)

    found = [
        builder.zext(together(numbers, builder.add), ir.IntType(64)),
        together(least, below),
        together(greatest, beyond),
    ]
    if weight is not None:
        found.append(reduce(builder.fadd, [mass.total() for mass in masses]))
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
def outline(typing, row, count):
    """The largest score of a row, the number of its scores and their sum, which is NaN if one of them is.

    -inf is no score. `count` is a multiple of 16. A part of what `survey` gives.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count = arguments
        high, total = (cgutils.alloca_once_value(builder, each) for each in (NONE, ir.Constant(FLOATS, None)))
        seen, bits = cgutils.alloca_once_value(builder, count.type(0)), ir.IntType(LANES)

        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = load(builder, builder.gep(row, [t]))
            there = builder.fcmp_unordered("!=", x, NONE)
            builder.store(smaller(builder, ">")(x, builder.load(high)), high)
            value = builder.select(there, x, ir.Constant(FLOATS, None))
            builder.store(builder.fadd(builder.load(total), value), total)
            number = builder.zext(builder.ctpop(builder.bitcast(there, bits)), count.type)
            builder.store(builder.add(builder.load(seen), number), seen)
        values = [
            reduced(builder, builder.load(high), smaller(builder, ">")),
            builder.load(seen),
            reduced(builder, builder.load(total), builder.fadd),
        ]
        return context.make_tuple(builder, signature.return_type, values)

    return types.Tuple([types.float32, types.int64, types.float32])(POINTER, types.int64), code


@intrinsic
def equal_places(typing, row, value):
    """Which of 16 scores equal a value, as bits."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, value = arguments
        equal = builder.fcmp_ordered("==", load(builder, row), splat(builder, value))
        return builder.zext(builder.bitcast(equal, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(POINTER, types.float32), code


@intrinsic
def place_of(typing, index, first, count, stop):
    """Where in an ascending list of `count` numbers, from `first` on, one is no longer below `stop`.

    Reads, but does not count, up to 64 numbers behind the end.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        index, first, count, stop = arguments
        kind, whole = first.type, ir.IntType(WAYS * LANES)
        limit = splat(builder, builder.trunc(stop, INT))
        place = cgutils.alloca_once_value(builder, first)
        loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        at = builder.load(place)
        # four vectors at once, which a branch between them would have to be guessed for
        beyond = whole(0)
        for way in range(WAYS):
            pointer = builder.gep(index, [builder.add(at, kind(way * LANES))])
            numbers = builder.load(builder.bitcast(pointer, INTS.as_pointer()), align=4)
            bits = builder.bitcast(builder.icmp_signed(">=", numbers, limit), ir.IntType(LANES))
            beyond = builder.or_(beyond, builder.shl(builder.zext(bits, whole), whole(way * LANES)))
        found = builder.cttz(beyond, ir.Constant(ir.IntType(1), 0))
        after = builder.add(at, found)
        builder.store(after, place)
        every = builder.icmp_signed("==", found, kind(WAYS * LANES))
        builder.cbranch(builder.and_(every, builder.icmp_signed("<", after, count)), loop, end)
        builder.position_at_end(end)
        after = builder.load(place)
        return builder.select(builder.icmp_signed("<", after, count), after, count)

    return types.int64(INDICES, types.int64, types.int64, types.int64), code
