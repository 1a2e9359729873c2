"""Vector loops as LLVM code: what the automatic vectoriser does not find, 16 floats at a time.

Wider than the machine is no fault: LLVM splits such vectors, so that results do not depend on AVX-512.
All take raw pointers, and a literal `width`, a multiple of 16, where a row of that many floats is meant.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.processor import FEATURES

FLOAT = ir.FloatType()
INT = ir.IntType(32)
FLOATS = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(INT, LANES)
HALF = LANES // 2
BYTES = ir.VectorType(ir.IntType(8), HALF)
POINTER = types.CPointer(types.float32)
INDICES = types.CPointer(types.int32)

# whether vectors are compressed by a table
TABLED = "+avx2" in FEATURES and "+avx512f" not in FEATURES


def load(builder: Any, pointer: Any, offset: int = 0) -> Any:
    return builder.load(_at(builder, pointer, offset), align=4)


def store(builder: Any, value: Any, pointer: Any, offset: int = 0) -> None:
    builder.store(value, _at(builder, pointer, offset), align=4)


def _at(builder: Any, pointer: Any, offset: int) -> Any:
    moved = builder.gep(pointer, [ir.Constant(ir.IntType(64), offset)])
    return builder.bitcast(moved, FLOATS.as_pointer())


def splat(builder: Any, scalar: Any) -> Any:
    vector = builder.insert_element(
        ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined), scalar, INT(0)
    )
    return builder.shuffle_vector(vector, vector, ir.Constant(INTS, [0] * LANES))


def call(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


def constant(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * LANES)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, "llvm.fmuladd.v16f32", FLOATS, [a, b, c])


def rounded(builder: Any, x: Any) -> Any:
    """The nearest whole numbers."""
    return call(builder, "llvm.rint.v16f32", FLOATS, [x])


def row_at(builder: Any, base: Any, stride: Any, index: Any) -> Any:
    return builder.gep(base, [builder.mul(stride, builder.sext(index, stride.type))])


def _vectors(width: Any) -> int:
    return width.literal_value // LANES


def with_width(signature: Any, build: Callable[[Any, Any, int], None]) -> Any:
    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        build(builder, arguments, _vectors(types_.args[-1]))
        return context.get_dummy_value()

    return signature, code


@intrinsic(prefer_literal=True)
def gather_sum(typing, out, rows, stride, index, weight, count, add, width):
    """out[:width] = sum of weight[t] * rows[index[t], :width] over t < count, added to what it holds if `add`."""

    def build(builder: Any, arguments: Any, vectors: int) -> None:
        out, rows, stride, index, weight, count, more, _ = arguments
        chains = max(1, 4 // vectors)  # an addition waits four cycles for the one before it
        zeros = ir.Constant(FLOATS, None)
        sums = [[cgutils.alloca_once(builder, FLOATS) for _ in range(vectors)] for _ in range(chains)]
        for chain, totals in enumerate(sums):
            for v, total in enumerate(totals):
                before = zeros if chain else builder.select(more, load(builder, out, v * LANES), zeros)
                builder.store(before, total)

        def add(t: Any, chain: int) -> None:
            row = row_at(builder, rows, stride, builder.load(builder.gep(index, [t])))
            share = splat(builder, builder.load(builder.gep(weight, [t])))
            for v in range(vectors):
                total = sums[chain][v]
                builder.store(fma(builder, load(builder, row, v * LANES), share, builder.load(total)), total)

        step = count.type(chains)
        whole = builder.mul(builder.udiv(count, step), step)
        with cgutils.for_range_slice(builder, count.type(0), whole, step, count.type) as (t, _):
            for chain in range(chains):
                add(builder.add(t, count.type(chain)), chain)
        if chains > 1:
            with cgutils.for_range_slice(builder, whole, count, count.type(1), count.type) as (t, _):
                add(t, 0)
        for v in range(vectors):
            total = builder.load(sums[0][v])
            for chain in range(1, chains):
                total = builder.fadd(total, builder.load(sums[chain][v]))
            store(builder, total, out, v * LANES)

    arguments = POINTER, POINTER, types.int64, INDICES, POINTER, types.int64, types.boolean, width
    return with_width(types.void(*arguments), build)


@intrinsic(prefer_literal=True)
def scatter_add(typing, rows, stride, index, weight, count, x, width):
    """rows[index[t], :width] += weight[t] * x[:width] for every t < count, in order."""

    def build(builder: Any, arguments: Any, vectors: int) -> None:
        rows, stride, index, weight, count, x, _ = arguments
        values = [load(builder, x, v * LANES) for v in range(vectors)]
        with cgutils.for_range(builder, count) as loop:
            row = row_at(builder, rows, stride, builder.load(builder.gep(index, [loop.index])))
            share = splat(builder, builder.load(builder.gep(weight, [loop.index])))
            for v, value in enumerate(values):
                store(builder, fma(builder, value, share, load(builder, row, v * LANES)), row, v * LANES)

    return with_width(types.void(POINTER, types.int64, INDICES, POINTER, types.int64, POINTER, width), build)


@intrinsic(prefer_literal=True)
def gather_dot(typing, out, x, rows, stride, index, count, add, width):
    """out[t] = x[:width] · rows[index[t], :width] for every t < count, added to out[t] if `add`."""

    def build(builder: Any, arguments: Any, vectors: int) -> None:
        out, x, rows, stride, index, count, add, _ = arguments
        values = [load(builder, x, v * LANES) for v in range(vectors)]

        def product(t: Any) -> Any:
            row = row_at(builder, rows, stride, builder.load(builder.gep(index, [t])))
            total = ir.Constant(FLOATS, None)
            for v, value in enumerate(values):
                total = fma(builder, value, load(builder, row, v * LANES), total)
            return total

        kind = count.type
        whole = builder.and_(count, kind(-LANES))
        with cgutils.for_range_slice(builder, kind(0), whole, kind(LANES), kind) as (t, _):
            goal = builder.gep(out, [t])
            sums = lane_sums(builder, [product(builder.add(t, kind(lane))) for lane in range(LANES)])
            before = builder.select(add, load(builder, goal), ir.Constant(FLOATS, None))
            store(builder, builder.fadd(before, sums), goal)
        with cgutils.for_range_slice(builder, whole, count, kind(1), kind) as (t, _):
            goal = builder.gep(out, [t])
            before = builder.select(add, builder.load(goal), ir.Constant(FLOAT, 0.0))
            builder.store(builder.fadd(before, lane_sum(builder, product(t))), goal)

    arguments = (POINTER, POINTER, POINTER, types.int64, INDICES, types.int64, types.boolean, width)
    return with_width(types.void(*arguments), build)


def lane_sums(builder: Any, sums: list[Any]) -> Any:
    """The sums of the lanes of 16 vectors, side by side."""
    half = LANES
    while half > 1:
        half //= 2
        starts = range(0, LANES, 2 * half)
        low = [
            lane
            for start in starts
            for side in (0, LANES)
            for lane in range(side + start, side + start + half)
        ]
        masks = [ir.Constant(INTS, [lane + more for lane in low]) for more in (0, half)]
        pairs = [(sums[i], sums[i + half]) for i in range(half)]
        sums = [builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks)) for a, b in pairs]
    return sums[0]


def lane_sum(builder: Any, vector: Any) -> Any:
    return reduced(builder, vector, builder.fadd)


def reduced(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        kind = ir.VectorType(INT, lanes)
        low = builder.shuffle_vector(vector, vector, ir.Constant(kind, list(range(lanes))))
        high = builder.shuffle_vector(vector, vector, ir.Constant(kind, list(range(lanes, 2 * lanes))))
        vector = combine(low, high)
    return builder.extract_element(vector, INT(0))


def smaller(builder: Any, order: str = "<") -> Callable[[Any, Any], Any]:
    """Code for the smaller of two numbers that are not NaN, or by another order."""
    return lambda one, other: builder.select(builder.fcmp_ordered(order, one, other), one, other)


@intrinsic
def survey(typing, row, count):
    """Smallest and largest score of a row, their number, sum and sum of squares, and how many are NaN.

    -inf is no score. `count` is a multiple of 16.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count = arguments
        infinity, zeros = ir.Constant(FLOATS, [float("inf")] * LANES), ir.Constant(INTS, None)
        below = ir.Constant(FLOATS, [-float("inf")] * LANES)
        low, high = (cgutils.alloca_once_value(builder, each) for each in (infinity, below))
        seen, broken = (cgutils.alloca_once_value(builder, zeros) for _ in range(2))
        sum_, squares = (cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None)) for _ in range(2))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = load(builder, builder.gep(row, [t]))
            there = builder.fcmp_unordered("!=", x, below)
            candidate = builder.select(there, x, infinity)
            for extreme, new, order in ((low, candidate, "<"), (high, x, ">")):
                old = builder.load(extreme)
                builder.store(builder.select(builder.fcmp_ordered(order, new, old), new, old), extreme)
            value = builder.select(there, x, ir.Constant(FLOATS, None))
            builder.store(builder.fadd(builder.load(sum_), value), sum_)
            builder.store(fma(builder, value, value, builder.load(squares)), squares)
            for counter, mask in ((seen, there), (broken, builder.fcmp_unordered("uno", x, x))):
                builder.store(builder.add(builder.load(counter), builder.zext(mask, INTS)), counter)
        values = [
            reduced(builder, builder.load(low), smaller(builder)),
            reduced(builder, builder.load(high), smaller(builder, ">")),
            reduced(builder, builder.load(seen), builder.add),
            reduced(builder, builder.load(broken), builder.add),
            lane_sum(builder, builder.load(sum_)),
            lane_sum(builder, builder.load(squares)),
        ]
        return context.make_tuple(builder, signature.return_type, values)

    result = types.Tuple(
        [types.float32, types.float32, types.int32, types.int32, types.float32, types.float32]
    )
    return result(POINTER, types.int64), code


@intrinsic
def compact(typing, row, count, threshold, tie, index, kept):
    """Write indices and scores of what is kept of a row, in order; returns how many.

    Kept are scores above the threshold, and those equal to it up to the index `tie`. `count` is a
    multiple of 16; `index` and `kept` need 16 slots more than is kept.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, count, threshold, tie, index, kept = arguments
        threshold, tie = splat(builder, threshold), splat(builder, tie)
        lanes = ir.Constant(INTS, list(range(LANES)))
        taken = cgutils.alloca_once_value(builder, ir.Constant(count.type, 0))
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = load(builder, builder.gep(row, [t]))
            place = builder.add(splat(builder, builder.trunc(t, INT)), lanes)
            equal = builder.fcmp_ordered("==", x, threshold)
            early = builder.icmp_signed("<=", place, tie)
            keep = builder.or_(builder.fcmp_ordered(">", x, threshold), builder.and_(equal, early))
            at = builder.load(taken)
            pairs = ((x, kept), (place, index))
            builder.store(compress(builder, keep, pairs, at), taken)
        return builder.load(taken)

    return types.int64(POINTER, types.int64, types.float32, types.int32, INDICES, POINTER), code


def compress(builder: Any, keep: Any, pairs: Sequence[tuple[Any, Any]], at: Any) -> Any:
    """Store the lanes that are kept of some vectors, side by side, from `at` of their goals; returns where they end."""
    if not TABLED:
        for values, goal in pairs:
            kind = "v16f32" if values.type == FLOATS else "v16i32"
            name = f"llvm.experimental.vector.compress.{kind}"
            undefined = ir.Constant(values.type, ir.Undefined)
            packed = call(builder, name, values.type, [values, keep, undefined])
            pointer = builder.bitcast(builder.gep(goal, [at]), values.type.as_pointer())
            builder.store(packed, pointer, align=4)
        number = builder.ctpop(builder.bitcast(keep, ir.IntType(LANES)))
        return builder.add(at, builder.zext(number, at.type))
    # without such an instruction LLVM stores lane by lane: here eight lanes in the order that a table has for each mask
    whole = builder.bitcast(keep, ir.IntType(LANES))
    half = ir.VectorType(INT, HALF)
    for first in range(0, LANES, HALF):
        mask = builder.trunc(builder.lshr(whole, whole.type(first)), ir.IntType(HALF))
        row = builder.gep(_orders(builder), [INT(0), builder.zext(mask, INT)])
        order = builder.zext(builder.load(row), half)
        some = ir.Constant(half, list(range(first, first + HALF)))
        for values, goal in pairs:
            lanes = builder.bitcast(builder.shuffle_vector(values, values, some), half)
            packed = call(builder, "llvm.x86.avx2.permd", half, [lanes, order])
            pointer = builder.bitcast(builder.gep(goal, [at]), half.as_pointer())
            builder.store(packed, pointer, align=4)
        at = builder.add(at, builder.zext(builder.ctpop(mask), at.type))
    return at


def _orders(builder: Any) -> Any:
    """For each of 256 masks the lanes that it keeps, first, as bytes."""
    lanes = [[lane for lane in range(HALF) if mask >> lane & 1] for mask in range(1 << HALF)]
    rows = [ir.Constant(BYTES, each + [0] * (HALF - len(each))) for each in lanes]
    kind = ir.ArrayType(BYTES, len(rows))
    return cgutils.global_constant(builder, "crisp_orders", ir.Constant(kind, rows))
