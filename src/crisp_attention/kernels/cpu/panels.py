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

from crisp_attention.kernels.cpu.native import compiled, floats_after
from crisp_attention.kernels.cpu.processor import FEATURES
from crisp_attention.kernels.cpu.vectors import FLOATS, INTS, LANES, POINTER, fma, load, splat, store

ZERO = np.float32(0)
# 4 x 4 vectors of sums leave AVX-512 registers for the factors; of AVX2's 16 registers, which hold half as much, 6 x 2
ROWS, WIDE = (4, 64) if "+avx512f" in FEATURES else (6, 16)
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
    while width - c >= LANES:
        left, right = floats_after(out, c), floats_after(b, c)
        _strip(left, out_row, a, a_row, a_step, right, b_row, count, rows, LANES, add)
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


@intrinsic(prefer_literal=True)
def _panel(typing, out, out_row, a, a_row, a_step, b, b_row, count, add, rows, width):
    """`multiply` for few enough rows and columns that all sums fit into registers."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, out_row, a, a_row, a_step, b, b_row, count, add, _, _ = arguments
        rows, width = (each.literal_value for each in types_.args[-2:])
        zeros = ir.Constant(FLOATS, None)
        starts = [builder.gep(out, [builder.mul(out_row, out_row.type(r))]) for r in range(rows)]
        goals = [(start, column) for start in starts for column in range(0, width, LANES)]
        sums = {goal: cgutils.alloca_once(builder, FLOATS) for goal in goals}
        for total in sums.values():
            builder.store(zeros, total)
        with builder.if_then(add):
            for goal, total in sums.items():
                builder.store(load(builder, *goal), total)
        with cgutils.for_range(builder, count) as loop:
            line = builder.gep(b, [builder.mul(b_row, loop.index)])
            right = {column: load(builder, line, column) for column in range(0, width, LANES)}
            for r, start in enumerate(starts):
                place = builder.add(builder.mul(a_row, a_row.type(r)), builder.mul(a_step, loop.index))
                left = splat(builder, builder.load(builder.gep(a, [place])))
                for column, each in right.items():
                    total = sums[start, column]
                    builder.store(fma(builder, left, each, builder.load(total)), total)
        for goal, total in sums.items():
            store(builder, builder.load(total), *goal)
        return context.get_dummy_value()

    strided = (POINTER, types.int64)
    return types.void(
        *strided, *strided, types.int64, *strided, types.int64, types.boolean, rows, width
    ), code


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
