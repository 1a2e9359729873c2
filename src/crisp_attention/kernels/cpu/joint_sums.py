"""Two sums over the same rows chosen by index, in one pass: each row comes from the cache once."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.native import compiled, floats_after
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INDICES,
    LANES,
    POINTER,
    fma,
    lane_sums,
    load,
    row_at,
    splat,
    store,
    with_width,
)


@compiled
def exchange(out, rows, stride, x, goals, goal_stride, index, weight, count, width):
    """`gather_sum` of rows onto what `out` holds, and `scatter_add` of `x` to the goals that have their numbers."""
    done = 0
    while width - done >= 64:
        _exchange(out, rows, stride, x, goals, goal_stride, index, weight, count, done, 64)
        done += 64
    if width - done >= 32:
        _exchange(out, rows, stride, x, goals, goal_stride, index, weight, count, done, 32)
        done += 32
    if width - done >= 16:
        _exchange(out, rows, stride, x, goals, goal_stride, index, weight, count, done, 16)
        done += 16
    for d in range(done, width):
        total = out[d]
        for t in range(count):
            total += weight[t] * rows[index[t] * stride + d]
            goals[index[t] * goal_stride + d] += weight[t] * x[d]
        out[d] = total


@compiled
def _exchange(out, rows, stride, x, goals, goal_stride, index, weight, count, done, width):
    _exchange_vectors(
        floats_after(out, done),
        floats_after(rows, done),
        stride,
        floats_after(x, done),
        floats_after(goals, done),
        goal_stride,
        index,
        weight,
        count,
        width,
    )


@compiled
def gather_dot_and_sum(out, x, sums, rows, stride, index, weight, count, width):
    """`gather_dot`, and `sums`[:width] += the sum of weight[t] * rows[index[t], :width], in one pass.

    The width is of whole vectors. Up to a multiple of 16, `out` is overwritten behind the list, and indices are read.
    """
    done = 0
    while width - done >= 64:
        _dot_and_sum(out, x, sums, rows, stride, index, weight, count, done, 64)
        done += 64
    if width - done >= 32:
        _dot_and_sum(out, x, sums, rows, stride, index, weight, count, done, 32)
        done += 32
    if width - done >= 16:
        _dot_and_sum(out, x, sums, rows, stride, index, weight, count, done, 16)
        done += 16


@compiled
def _dot_and_sum(out, x, sums, rows, stride, index, weight, count, done, width):
    _dot_and_sum_vectors(
        out,
        floats_after(x, done),
        floats_after(sums, done),
        floats_after(rows, done),
        stride,
        index,
        weight,
        count,
        done > 0,
        width,
    )


@intrinsic(prefer_literal=True)
def _exchange_vectors(typing, out, rows, stride, x, goals, goal_stride, index, weight, count, width):
    """`gather_sum` onto what `out` holds, and `scatter_add` of `x` to other rows by the same indices and weights."""

    def build(builder: Any, arguments: Any, vectors: int) -> None:
        out, rows, stride, x, goals, goal_stride, index, weight, count, _ = arguments
        values = [load(builder, x, v * LANES) for v in range(vectors)]
        sums = [cgutils.alloca_once_value(builder, load(builder, out, v * LANES)) for v in range(vectors)]
        with cgutils.for_range(builder, count) as loop:
            number = builder.load(builder.gep(index, [loop.index]))
            row, goal = row_at(builder, rows, stride, number), row_at(builder, goals, goal_stride, number)
            share = splat(builder, builder.load(builder.gep(weight, [loop.index])))
            for v, (value, total) in enumerate(zip(values, sums, strict=True)):
                at = v * LANES
                builder.store(fma(builder, load(builder, row, at), share, builder.load(total)), total)
                store(builder, fma(builder, value, share, load(builder, goal, at)), goal, at)
        for v, total in enumerate(sums):
            store(builder, builder.load(total), out, v * LANES)

    row = POINTER, types.int64
    arguments = POINTER, *row, POINTER, *row, INDICES, POINTER, types.int64, width
    return with_width(types.void(*arguments), build)


@intrinsic(prefer_literal=True)
def _dot_and_sum_vectors(typing, out, x, goal, rows, stride, index, weight, count, add, width):
    """`gather_dot`, also behind the list up to a multiple of 16, and `gather_sum` onto what `goal` holds."""

    def build(builder: Any, arguments: Any, vectors: int) -> None:
        out, x, goal, rows, stride, index, weight, count, more, _ = arguments
        values = [load(builder, x, v * LANES) for v in range(vectors)]
        sums = [cgutils.alloca_once_value(builder, load(builder, goal, v * LANES)) for v in range(vectors)]

        def row_of(t: Any) -> list[Any]:
            row = row_at(builder, rows, stride, builder.load(builder.gep(index, [t])))
            return [load(builder, row, v * LANES) for v in range(vectors)]

        def product(row: list[Any]) -> Any:
            total = ir.Constant(FLOATS, None)
            for value, each in zip(values, row, strict=True):
                total = fma(builder, value, each, total)
            return total

        def add_row(row: list[Any], t: Any) -> None:
            share = splat(builder, builder.load(builder.gep(weight, [t])))
            for total, each in zip(sums, row, strict=True):
                builder.store(fma(builder, each, share, builder.load(total)), total)

        def note(t: Any, products: list[Any]) -> None:
            place = builder.gep(out, [t])
            before = builder.select(more, load(builder, place), ir.Constant(FLOATS, None))
            store(builder, builder.fadd(before, lane_sums(builder, products)), place)

        kind = count.type
        whole = builder.and_(count, kind(-LANES))
        with cgutils.for_range_slice(builder, kind(0), whole, kind(LANES), kind) as (t, _):
            products = []
            for lane in range(LANES):
                at = builder.add(t, kind(lane))
                row = row_of(at)
                products.append(product(row))
                add_row(row, at)
            note(t, products)
        with builder.if_then(builder.icmp_signed("<", whole, count)):
            note(whole, [product(row_of(builder.add(whole, kind(lane)))) for lane in range(LANES)])
            with cgutils.for_range_slice(builder, whole, count, kind(1), kind) as (t, _):
                add_row(row_of(t), t)
        for v, total in enumerate(sums):
            store(builder, builder.load(total), goal, v * LANES)

    row = POINTER, types.int64
    arguments = POINTER, POINTER, POINTER, *row, INDICES, POINTER, types.int64, types.boolean, width
    return with_width(types.void(*arguments), build)
