"""Which queries of a tile kept each of some keys, one list after another, and the gradients from these lists."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.joint_sums import exchange, gather_dot_and_sum
from crisp_attention.kernels.cpu.native import compiled, floats_after, indices_after, summing
from crisp_attention.kernels.cpu.plan import LISTED, QUERIES
from crisp_attention.kernels.cpu.selection import LOWEST
from crisp_attention.kernels.cpu.vectors import (
    INDICES,
    INT,
    INTS,
    LANES,
    POINTER,
    compress,
    constant,
    load,
    splat,
)
from crisp_attention.kernels.cpu.weights import ZERO, drop_column


@compiled
def list_strip(scores, columns, keys, number, hidden, state, notes, ends, index, lists):
    """List which queries of a tile kept each of some keys, the first of which has this number, and where its list ends.

    The key after it is hidden from one query more, at the beginning of the tile. `state` has four numbers of every
    query: threshold, largest score, share and mean; `notes` two: tie, and what dropout draws. Of those that are listed,
    four lists follow one another in `lists`, each with `LISTED`: difference to the largest score, share, mean, and room
    for one more.
    """
    total = np.int64(0)
    for j in range(keys):
        total += _compact_column(
            floats_after(scores, j * QUERIES),
            columns,
            number + j,
            hidden + j,
            state,
            notes,
            indices_after(index, total),
            floats_after(lists, total),
        )
        ends[j] = np.int32(total)


@summing
def _weigh(kept, share, count):
    for t in range(count):
        kept[t] *= share[t]


@compiled
def _drop(weights, kept, ends, count, index, drawn, dropout, number):
    at = np.int64(0)
    for t in range(ends[count - 1]):
        weights[t] = kept[t]
    for j in range(count):
        own, listed = floats_after(weights, at), indices_after(index, at)
        drop_column(own, listed, drawn, ends[j] - at, dropout, number + j)
        at = np.int64(ends[j])


@compiled
def _to_scores(slope, kept, weights, mean, count, dropped):
    # where nothing is dropped, equal numbers have to be subtracted before they are rounded
    for t in range(0 if dropped else count):
        slope[t] = kept[t] * (slope[t] - mean[t])
    for t in range(count if dropped else 0):
        slope[t] = weights[t] * slope[t] - kept[t] * mean[t]


@compiled
def differentiate(
    job, count, number, notes, ends, index, lists, keys, values, query, grad, query_grad, key_grad, value_grad
):
    """Add to the gradients of a tile's queries, and to those of some keys and values, what lists of the keys give.

    As `list_strip` left them, with its `number`. Keys and queries are scaled.
    """
    kept, share = lists, floats_after(lists, LISTED)
    mean, slope = floats_after(lists, 2 * LISTED), floats_after(lists, 3 * LISTED)
    width, value_width, total = job.width, job.value_width, np.int64(ends[count - 1])
    exponentials(kept, kept, ZERO, total)
    _weigh(kept, share, total)
    weights = kept
    if job.dropout > 0:
        weights = share  # which is not needed any more
        _drop(weights, kept, ends, count, index, indices_after(notes, QUERIES), job.dropout, number)
    at = np.int64(0)
    for j in range(count):
        length, own = ends[j] - at, indices_after(index, at)
        if length > 0:
            value, goal = floats_after(values, j * value_width), floats_after(slope, at)
            # what is written behind the list is the next one's place, or in the room behind the last
            sums, shares = floats_after(value_grad, j * value_width), floats_after(weights, at)
            gather_dot_and_sum(goal, value, sums, grad, value_width, own, shares, length, value_width)
        at += length
    _to_scores(slope, kept, weights, mean, total, job.dropout > 0)
    at = np.int64(0)
    for j in range(count):
        length, own = ends[j] - at, indices_after(index, at)
        if length > 0:
            goal, slopes = floats_after(key_grad, j * width), floats_after(slope, at)
            key = floats_after(keys, j * width)
            exchange(goal, query, width, key, query_grad, job.query_grad_row, own, slopes, length, width)
        at += length


@intrinsic
def _compact_column(typing, scores, count, number, hidden, state, ties, index, lists):
    """`list_strip` for one key; returns how many. `count` is a multiple of 16; index 0 follows in 16 slots more."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, count, number, hidden, state, ties, index, lists = arguments
        number, hidden = (splat(builder, builder.trunc(each, INT)) for each in (number, hidden))
        lanes, lowest = ir.Constant(INTS, list(range(LANES))), constant(float(LOWEST))
        taken = cgutils.alloca_once_value(builder, ir.Constant(count.type, 0))

        def list_of(t: int) -> Any:
            return builder.gep(lists, [count.type(t * LISTED)])

        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            x = load(builder, builder.gep(scores, [t]))
            x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
            threshold, high, share, mean = (
                load(builder, builder.gep(state, [t]), v * QUERIES) for v in range(4)
            )
            tie = builder.load(builder.bitcast(builder.gep(ties, [t]), INTS.as_pointer()), align=4)
            place = builder.add(splat(builder, builder.trunc(t, INT)), lanes)
            equal = builder.fcmp_ordered("==", x, threshold)
            early = builder.icmp_signed("<=", number, tie)
            keep = builder.or_(builder.fcmp_ordered(">", x, threshold), builder.and_(equal, early))
            keep = builder.and_(keep, builder.icmp_signed(">=", place, hidden))
            pairs = (
                (place, index),
                (builder.fsub(x, high), lists),
                (share, list_of(1)),
                (mean, list_of(2)),
            )
            builder.store(compress(builder, keep, pairs, builder.load(taken)), taken)
        total = builder.load(taken)
        end = builder.bitcast(builder.gep(index, [total]), INTS.as_pointer())
        builder.store(ir.Constant(INTS, None), end, align=4)
        return total

    row = POINTER, types.int64, types.int64, types.int64
    return types.int64(*row, POINTER, INDICES, INDICES, POINTER), code
