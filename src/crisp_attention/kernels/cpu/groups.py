"""Groups of neighbours in a row of scores: the largest of small groups by ranks, counts and parts of large ones."""

from collections.abc import Callable
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
    compress,
    load,
    splat,
)

LONG = ir.IntType(64)
BEHIND = 2**30  # the place of a lane that belongs to no group


def _repeated(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def _take(
    builder: Any, arguments: Any, size: int, end: Any, keep: Callable[[Any, Any, Any], Any], taken: Any
) -> None:
    """Code that writes what is to be kept of a part of a row, `size` scores at a time.

    keep: of scores, their places in the row and whether these are before the end.
    """
    row, names, named, begin, index, kept = arguments
    lanes = ir.Constant(INTS, [lane if lane < size else BEHIND for lane in range(LANES)])
    with cgutils.for_range_slice(builder, begin, end, begin.type(size), begin.type) as (t, _):
        place = builder.add(splat(builder, builder.trunc(t, INT)), lanes)
        inside = builder.icmp_signed("<", place, splat(builder, builder.trunc(end, INT)))
        x = _load_inside(builder, builder.gep(row, [t]), inside)
        name = builder.bitcast(load(builder, builder.bitcast(builder.gep(names, [t]), row.type)), INTS)
        name = builder.select(named, name, place)
        pairs = ((x, kept), (name, index))
        builder.store(compress(builder, keep(x, place, inside), pairs, builder.load(taken)), taken)


def _load_inside(builder: Any, pointer: Any, inside: Any) -> Any:
    """Some of 16 numbers: a group may end closer to the end of memory than a vector does."""
    at = builder.bitcast(pointer, FLOATS.as_pointer())
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(FLOATS, [at.type, INT, inside.type, FLOATS]),
        "llvm.masked.load.v16f32.p0",
    )
    return builder.call(function, [at, INT(4), inside, ir.Constant(FLOATS, None)])


def _first(builder: Any, x: Any, inside: Any, room: Any, m: int) -> Any:
    """Which scores have fewer than `room` before them in their group of m: larger ones, and equal ones before them."""
    size = LANES // m * m
    # floats in their order are whole numbers; -0 is 0
    bits = builder.bitcast(builder.fadd(x, ir.Constant(FLOATS, [0.0] * LANES)), INTS)
    negative = builder.ashr(bits, _repeated(31))
    numbers = builder.xor(bits, builder.and_(negative, _repeated(2**31 - 1)))
    numbers = builder.select(inside, numbers, _repeated(-(2**31)))
    rank = _repeated(0)
    for turn in range(1, m):
        places = [lane % m + turn for lane in range(LANES)]
        mask = [lane - lane % m + place % m if lane < size else lane for lane, place in enumerate(places)]
        other = builder.shuffle_vector(numbers, numbers, ir.Constant(INTS, mask))
        earlier = ir.Constant(INTS, [int(place >= m) for place in places])
        beaten = builder.icmp_signed(">", builder.add(other, earlier), numbers)
        rank = builder.sub(rank, builder.sext(beaten, INTS))
    return builder.and_(inside, builder.icmp_signed("<", rank, room))


@intrinsic
def take_first(typing, row, names, named, begin, end, room, m, index, kept, taken):
    """Write the `room` largest of every m scores from `begin` to `end`, the earlier of equal ones; 2 <= m <= 16.

    Written behind the first `taken`: the scores, and their places in the row, or the `names` there if `named`.
    Returns how many are written then. `index` and `kept` need 16 slots more than that. No score is NaN.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, names, named, begin, end, room, m, index, kept, taken = arguments
        result = cgutils.alloca_once_value(builder, taken)
        room = splat(builder, builder.trunc(room, INT))
        done = builder.append_basic_block("done")
        switch = builder.switch(m, done)
        for size in range(2, LANES + 1):
            block = builder.append_basic_block(f"groups_of_{size}")
            switch.add_case(m.type(size), block)
            builder.position_at_end(block)

            def keep(x: Any, _place: Any, inside: Any, size: int = size) -> Any:
                return _first(builder, x, inside, room, size)

            _take(builder, (row, names, named, begin, index, kept), LANES // size * size, end, keep, result)
            builder.branch(done)
        builder.position_at_end(done)
        return builder.load(result)

    part = POINTER, INDICES, types.boolean, types.int64, types.int64
    return types.int64(*part, types.int64, types.int64, INDICES, POINTER, types.int64), code


@intrinsic
def take_above(typing, row, names, named, begin, end, threshold, tie, index, kept, taken):
    """`take_first` for the scores above a threshold, and those equal to it up to the place `tie`."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, names, named, begin, end, threshold, tie, index, kept, taken = arguments
        result = cgutils.alloca_once_value(builder, taken)
        threshold, tie = splat(builder, threshold), splat(builder, tie)

        def keep(x: Any, place: Any, inside: Any) -> Any:
            early = builder.icmp_signed("<=", place, tie)
            equal = builder.and_(builder.fcmp_ordered("==", x, threshold), early)
            return builder.and_(inside, builder.or_(builder.fcmp_ordered(">", x, threshold), equal))

        _take(builder, (row, names, named, begin, index, kept), LANES, end, keep, result)
        return builder.load(result)

    part = POINTER, INDICES, types.boolean, types.int64, types.int64
    return types.int64(*part, types.float32, types.int32, INDICES, POINTER, types.int64), code


@intrinsic
def at_least(typing, row, count, middle):
    """How many of the first `count` scores are at least `middle`; reads the last 16 to their end."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, count, middle = arguments
        middle = splat(builder, middle)
        bits = ir.IntType(LANES)
        number = cgutils.alloca_once_value(builder, LONG(0))

        def add(t: Any, mask: Any = None) -> None:
            above = builder.fcmp_ordered(">=", load(builder, builder.gep(row, [t])), middle)
            if mask is not None:
                above = builder.and_(above, mask)
            found = builder.zext(builder.ctpop(builder.bitcast(above, bits)), LONG)
            builder.store(builder.add(builder.load(number), found), number)

        whole = builder.and_(count, count.type(-LANES))
        with cgutils.for_range_slice(builder, count.type(0), whole, count.type(LANES), count.type) as (t, _):
            add(t)
        with builder.if_then(builder.icmp_signed("<", whole, count)):
            left = splat(builder, builder.trunc(builder.sub(count, whole), INT))
            add(whole, builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), left))
        return builder.load(number)

    return types.int64(POINTER, types.int64, types.float32), code
