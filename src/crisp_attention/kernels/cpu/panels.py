"""Products of small matrices: a few rows of sums at a time in registers, with no call into a library.

A library packs its factors in each call and shares locks with other threads: for blocks of 64 that cost a
quarter of the time on one thread, and more than half on two.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.native import compiled, floats_after, indices_after
from crisp_attention.kernels.cpu.processor import FEATURES
from crisp_attention.kernels.cpu.vectors import FLOATS, INDICES, INTS, LANES, POINTER, fma, load, splat, store

ZERO = np.float32(0)
# 4 x 4 vectors of sums leave AVX-512 registers for the factors; of AVX2's 16 registers, which hold half as much, 6 x 2
ROWS, WIDE, HALF_WIDE = (4, 64, 32) if "+avx512f" in FEATURES else (6, 16, 16)
TALL = 2 * ROWS  # rows of single vectors, of which four would wait for themselves
FEWER = ROWS - 2


@compiled
def multiply(out, out_row, a, a_row, a_step, b, b_row, count, rows, width, add):
    """out[r, c] = sum of a[r * a_row + t * a_step] * b[t * b_row + c] over t < count, for r < rows, c < width.

    Added to what `out` holds if `add`.
    """
    c = 0
    while width - c >= WIDE:
        left, right = floats_after(out, c), floats_after(b, c)
        _strip(left, out_row, a, a_row, a_step, right, b_row, count, rows, WIDE, add)
        c += WIDE
    while width - c >= HALF_WIDE:
        left, right = floats_after(out, c), floats_after(b, c)
        _strip(left, out_row, a, a_row, a_step, right, b_row, count, rows, HALF_WIDE, add)
        c += HALF_WIDE
    while width - c >= LANES:
        left, right = floats_after(out, c), floats_after(b, c)
        _narrow_strip(left, out_row, a, a_row, a_step, right, b_row, count, rows, add)
        c += LANES
    for r in range(rows if c < width else 0):
        for d in range(c, width):
            total = out[r * out_row + d] if add else ZERO
            for t in range(count):
                total += a[r * a_row + t * a_step] * b[t * b_row + d]
            out[r * out_row + d] = total


@compiled
def _strip(out, out_row, a, a_row, a_step, b, b_row, count, rows, width, add):
    r = 0
    while rows - r >= ROWS:
        sums, left = floats_after(out, r * out_row), floats_after(a, r * a_row)
        _panel(sums, out_row, left, a_row, a_step, b, b_row, count, add, ROWS, width)
        r += ROWS
    while rows - r >= FEWER:
        sums, left = floats_after(out, r * out_row), floats_after(a, r * a_row)
        _panel(sums, out_row, left, a_row, a_step, b, b_row, count, add, FEWER, width)
        r += FEWER
    while r < rows:
        sums, left = floats_after(out, r * out_row), floats_after(a, r * a_row)
        _panel(sums, out_row, left, a_row, a_step, b, b_row, count, add, 1, width)
        r += 1


@compiled
def _narrow_strip(out, out_row, a, a_row, a_step, b, b_row, count, rows, add):
    r = 0
    while rows - r >= TALL:
        sums, left = floats_after(out, r * out_row), floats_after(a, r * a_row)
        _panel(sums, out_row, left, a_row, a_step, b, b_row, count, add, TALL, LANES)
        r += TALL
    sums, left = floats_after(out, r * out_row), floats_after(a, r * a_row)
    _strip(sums, out_row, left, a_row, a_step, b, b_row, count, rows - r, LANES, add)


@compiled
def multiply_scattered(out, out_at, a, a_at, b, b_row, count, rows, width, add):
    """out[out_at[r] + c] = sum of a[a_at[r] + t] * b[t * b_row + c] over t < count, for r < rows, c < width.

    Added to what `out` holds if `add`.
    """
    c = 0
    while c < width:
        step = WIDE if width - c >= WIDE else LANES
        left, right = floats_after(out, c), floats_after(b, c)
        if width - c >= WIDE:
            _scattered_strip(left, out_at, a, a_at, right, b_row, count, rows, add, WIDE)
        elif width - c >= LANES:
            _scattered_strip(left, out_at, a, a_at, right, b_row, count, rows, add, LANES)
        else:
            for r in range(rows):
                for d in range(width - c):
                    total = left[out_at[r] + d] if add else ZERO
                    for t in range(count):
                        total += a[a_at[r] + t] * right[t * b_row + d]
                    left[out_at[r] + d] = total
        c += step


@compiled
def _scattered_strip(out, out_at, a, a_at, b, b_row, count, rows, add, width):
    r = 0
    while rows - r >= ROWS:
        _scattered(
            out, indices_after(out_at, r), a, indices_after(a_at, r), b, b_row, count, add, ROWS, width
        )
        r += ROWS
    while r < rows:
        _scattered(out, indices_after(out_at, r), a, indices_after(a_at, r), b, b_row, count, add, 1, width)
        r += 1


@compiled
def add_gathered(out, out_row, a, a_at, b, b_at, count, rows, width):
    """out[r, c] += sum of a[a_at[t] + r] * b[b_at[t] + c] over t < count, for r < rows, c < width."""
    c = 0
    while c < width:
        step = WIDE if width - c >= WIDE else LANES
        left, right = floats_after(out, c), floats_after(b, c)
        if width - c >= WIDE:
            _gathered_strip(left, out_row, a, a_at, right, b_at, count, rows, WIDE)
        elif width - c >= LANES:
            _gathered_strip(left, out_row, a, a_at, right, b_at, count, rows, LANES)
        else:
            for r in range(rows):
                for d in range(width - c):
                    total = left[r * out_row + d]
                    for t in range(count):
                        total += a[a_at[t] + r] * right[b_at[t] + d]
                    left[r * out_row + d] = total
        c += step


@compiled
def _gathered_strip(out, out_row, a, a_at, b, b_at, count, rows, width):
    r = 0
    while rows - r >= ROWS:
        _gathered(
            floats_after(out, r * out_row), out_row, floats_after(a, r), a_at, b, b_at, count, ROWS, width
        )
        r += ROWS
    while r < rows:
        _gathered(floats_after(out, r * out_row), out_row, floats_after(a, r), a_at, b, b_at, count, 1, width)
        r += 1


@intrinsic(prefer_literal=True)
def _panel(typing, out, out_row, a, a_row, a_step, b, b_row, count, add, rows, width):
    """`multiply` for few enough rows and columns that all sums fit into registers."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, out_row, a, a_row, a_step, b, b_row, count, add, _, _ = arguments
        rows, width = (each.literal_value for each in types_.args[-2:])

        def left(r: int, t: Any) -> Any:
            place = builder.add(builder.mul(a_row, a_row.type(r)), builder.mul(a_step, t))
            return builder.gep(a, [place])

        def line(t: Any) -> Any:
            return builder.gep(b, [builder.mul(b_row, t)])

        starts = [builder.gep(out, [builder.mul(out_row, out_row.type(r))]) for r in range(rows)]
        _sums(builder, starts, left, line, count, add, width)
        return context.get_dummy_value()

    strided = (POINTER, types.int64)
    return types.void(
        *strided, *strided, types.int64, *strided, types.int64, types.boolean, rows, width
    ), code


@intrinsic(prefer_literal=True)
def _scattered(typing, out, out_at, a, a_at, b, b_row, count, add, rows, width):
    """`multiply_scattered` for few enough rows and columns."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, out_at, a, a_at, b, b_row, count, add, _, _ = arguments
        rows, width = (each.literal_value for each in types_.args[-2:])
        starts, lefts = (
            [_moved(builder, base, at, count.type(r)) for r in range(rows)]
            for base, at in ((out, out_at), (a, a_at))
        )

        def left(r: int, t: Any) -> Any:
            return builder.gep(lefts[r], [t])

        def line(t: Any) -> Any:
            return builder.gep(b, [builder.mul(b_row, t)])

        _sums(builder, starts, left, line, count, add, width)
        return context.get_dummy_value()

    scattered = (POINTER, INDICES)
    return types.void(
        *scattered, *scattered, POINTER, types.int64, types.int64, types.boolean, rows, width
    ), code


@intrinsic(prefer_literal=True)
def _gathered(typing, out, out_row, a, a_at, b, b_at, count, rows, width):
    """`add_gathered` for few enough rows and columns."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, out_row, a, a_at, b, b_at, count, _, _ = arguments
        rows, width = (each.literal_value for each in types_.args[-2:])

        def left(r: int, t: Any) -> Any:
            return builder.gep(_moved(builder, a, a_at, t), [t.type(r)])

        def line(t: Any) -> Any:
            return _moved(builder, b, b_at, t)

        starts = [builder.gep(out, [builder.mul(out_row, out_row.type(r))]) for r in range(rows)]
        _sums(builder, starts, left, line, count, ir.Constant(ir.IntType(1), 1), width)
        return context.get_dummy_value()

    gathered = (POINTER, INDICES)
    return types.void(POINTER, types.int64, *gathered, *gathered, types.int64, rows, width), code


def _moved(builder: Any, base: Any, at: Any, number: Any) -> Any:
    """base + at[number]."""
    return builder.gep(base, [builder.sext(builder.load(builder.gep(at, [number])), ir.IntType(64))])


def _sums(builder: Any, starts: Any, left: Any, line: Any, count: Any, add: Any, width: int) -> None:
    """starts[r][c] = the sum of left(r, t) * line(t)[c] over t < count, added to what is there if `add`."""
    goals = [(start, column) for start in starts for column in range(0, width, LANES)]
    sums = {goal: cgutils.alloca_once(builder, FLOATS) for goal in goals}
    for total in sums.values():
        builder.store(ir.Constant(FLOATS, None), total)
    with builder.if_then(add):
        for goal, total in sums.items():
            builder.store(load(builder, *goal), total)
    with cgutils.for_range(builder, count) as loop:
        row = line(loop.index)
        right = {column: load(builder, row, column) for column in range(0, width, LANES)}
        for r, start in enumerate(starts):
            factor = splat(builder, builder.load(left(r, loop.index)))
            for column, each in right.items():
                total = sums[start, column]
                builder.store(fma(builder, factor, each, builder.load(total)), total)
    for goal, total in sums.items():
        store(builder, builder.load(total), *goal)


@compiled
def pack(packed, size, rows, stride, count, width, factor):
    """packed[s, d, j] = factor * rows[s * size + j, d]: strips of `size` rows, transposed; rows up to `count`.

    `size` is a multiple of 16; a last strip is filled with zeros up to the next multiple of 16.
    """
    scale = np.float32(factor)
    for first in range(0, count, size):
        strip, source = floats_after(packed, first * width), floats_after(rows, first * stride)
        there = min(size, count - first)
        for j in range(0, there, LANES):
            d = 0
            while there - j >= LANES and width - d >= LANES:
                goal, square = floats_after(strip, d * size + j), floats_after(source, j * stride + d)
                _transpose(goal, size, square, stride, scale)
                d += LANES
            for e in range(d, width):
                for i in range(j, j + LANES):
                    strip[e * size + i] = scale * source[i * stride + e] if i < there else ZERO


@intrinsic
def _transpose(typing, out, out_row, a, a_row, scale):
    """out[d * out_row + j] = scale * a[j * a_row + d] for d, j < 16."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        out, out_row, a, a_row, scale = arguments
        scale = splat(builder, scale)

        def row(base: Any, stride: Any, number: int) -> Any:
            return builder.gep(base, [builder.mul(stride, stride.type(number))])

        rows = [builder.fmul(scale, load(builder, row(a, a_row, j))) for j in range(LANES)]
        half = LANES // 2
        while half:
            # quarters of squares change places, in squares of half the size each time
            first = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
            second = [lane + half if not lane & half else LANES + lane for lane in range(LANES)]
            for j in (j for j in range(LANES) if not j & half):
                pair = rows[j], rows[j + half]
                rows[j] = builder.shuffle_vector(*pair, ir.Constant(INTS, first))
                rows[j + half] = builder.shuffle_vector(*pair, ir.Constant(INTS, second))
            half //= 2
        for d, values in enumerate(rows):
            store(builder, values, row(out, out_row, d))
        return context.get_dummy_value()

    return types.void(POINTER, types.int64, POINTER, types.int64, types.float32), code
