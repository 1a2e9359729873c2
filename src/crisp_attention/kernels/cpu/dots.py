"""Scores of a single row: products with keys as they lie in memory, where packing them would take longer."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.native import compiled, floats_after
from crisp_attention.kernels.cpu.vectors import FLOATS, LANES, POINTER, fma, lane_sums, load, store

ZERO = np.float32(0)


@compiled
def row_dots(out, x, rows, stride, count, width, scale):
    """out[j] = scale * x[:width] · rows[j, :width] for every j < count."""
    whole = count // LANES * LANES
    done = 0
    while width - done >= 64:
        _dots(out, floats_after(x, done), floats_after(rows, done), stride, whole, done > 0, 64)
        done += 64
    while width - done >= 16:
        _dots(out, floats_after(x, done), floats_after(rows, done), stride, whole, done > 0, 16)
        done += 16
    for j in range(count):
        total = out[j] if done > 0 and j < whole else ZERO
        for d in range(done if j < whole else 0, width):
            total += x[d] * rows[j * stride + d]
        out[j] = scale * total


@intrinsic(prefer_literal=True)
def _dots(typing, out, x, rows, stride, count, add, width):
    """`row_dots` for a multiple of 16 rows, added to what `out` holds if `add`."""

    def code(context: Any, builder: Any, types_: Any, arguments: Any) -> Any:
        out, x, rows, stride, count, add, _ = arguments
        parts = range(0, types_.args[-1].literal_value, LANES)
        factors = [load(builder, x, d) for d in parts]
        zeros = ir.Constant(FLOATS, None)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            sums = []
            for j in range(LANES):
                row = builder.gep(rows, [builder.mul(stride, builder.add(t, t.type(j)))])
                total = zeros
                for d, factor in zip(parts, factors, strict=True):
                    total = fma(builder, factor, load(builder, row, d), total)
                sums.append(total)
            goal = builder.gep(out, [t])
            before = builder.select(add, load(builder, goal), zeros)
            store(builder, builder.fadd(before, lane_sums(builder, sums)), goal)
        return context.get_dummy_value()

    arguments = POINTER, POINTER, POINTER, types.int64, types.int64, types.boolean, width
    return types.void(*arguments), code
