"""Thresholds of 16 short rows at once: one row's search waits for each of its counts, those of others need not.

It is `selection`'s search with fewer bounds: rows that it does not end in are left to that.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.limits import surveyed
from crisp_attention.kernels.cpu.native import compiled, floats_after, floats_at, indices_after, indices_at
from crisp_attention.kernels.cpu.plan import STATE, TOPK
from crisp_attention.kernels.cpu.selection import EVERYWHERE, HALF, INFINITY, padded, search, tie_of
from crisp_attention.kernels.cpu.spans import bounds, end_of
from crisp_attention.kernels.cpu.vectors import LANES, POINTER, constant, fma, load, splat, store
from crisp_attention.kernels.cpu.weights import NAN, ONE, ZERO

# the longest rows for which this takes less time
SHORT_ROW = 192
# counts of each row, of which the first guesses are by the density of normal scores
COUNTS, PACED = 8, 2
# where in the notes of the searches of 16 rows the vector of each number begins
LOW, PEAK, BELOW, ABOVE, MIDDLE, PACE, WANTED, FOUND, NUMBER = range(0, STATE * LANES, LANES)
# the longest rows of which products with zeros take less time than lists of what is kept
LISTLESS = 96


@intrinsic
def count_from(typing, row, count, middle):
    """How many of a row of whole vectors are at least `middle`."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        row, count, middle = arguments
        middle, kind = splat(builder, middle), count.type
        total = cgutils.alloca_once_value(builder, kind(0))
        with cgutils.for_range_slice(builder, kind(0), count, kind(LANES), kind) as (t, _):
            above = builder.fcmp_ordered(">=", load(builder, builder.gep(row, [t])), middle)
            number = builder.ctpop(builder.bitcast(above, ir.IntType(LANES)))
            builder.store(builder.add(builder.load(total), builder.zext(number, kind)), total)
        return builder.load(total)

    return types.int64(POINTER, types.int64, types.float32), code


@intrinsic
def narrow(typing, state, step):
    """Take the numbers of scores from the middles on into account, and set other ones; returns which rows are left.

    These are bits, of 0 if none is.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        state, step = arguments

        def of(place: int) -> Any:
            return load(builder, state, place)

        middle, wanted, number = of(MIDDLE), of(WANTED), of(NUMBER)
        found = builder.select(builder.fcmp_ordered("==", number, wanted), middle, of(FOUND))
        many = builder.fcmp_ordered(">", number, wanted)
        low, peak = builder.select(many, middle, of(LOW)), builder.select(many, of(PEAK), middle)
        below, above = builder.select(many, number, of(BELOW)), builder.select(many, of(ABOVE), number)
        width = builder.fsub(peak, low)
        share = builder.fdiv(
            builder.fsub(builder.fsub(wanted, constant(0.5)), above), builder.fsub(below, above)
        )
        line = builder.fsub(peak, builder.fmul(width, share))
        paced = fma(builder, builder.fsub(number, wanted), of(PACE), middle)
        new = builder.select(splat(builder, builder.icmp_signed("<", step, step.type(PACED))), paced, line)
        inside = builder.and_(builder.fcmp_ordered(">", new, low), builder.fcmp_ordered("<", new, peak))
        new = builder.select(inside, new, fma(builder, width, constant(0.5), low))
        for place, vector in (
            (LOW, low), (PEAK, peak), (BELOW, below), (ABOVE, above), (MIDDLE, new), (FOUND, found)
        ):  # fmt: skip
            store(builder, vector, state, place)
        left = builder.bitcast(builder.fcmp_unordered("uno", found, found), ir.IntType(LANES))
        return builder.zext(left, ir.IntType(64))

    return types.int64(POINTER, types.int64), code


@compiled
def listless(job, batch):
    """Whether weights of an example are best written where its scores are."""
    begin, end = bounds(job, batch)
    return job.rule == TOPK and job.dropout == 0 and job.unpacked == 0 and end - begin <= LISTLESS


@compiled
def begin_search(state, r, low, high, seen, wanted, guess, pace):
    state[LOW + r], state[PEAK + r], state[BELOW + r], state[ABOVE + r] = low, high, seen, 0
    state[MIDDLE + r] = guess if low < guess < high else low * HALF + high * HALF
    state[WANTED + r], state[PACE + r], state[FOUND + r] = wanted, pace, NAN


@compiled
def alone(row, n, state, r):
    """Threshold and tie of a row whose search goes on from what was noted."""
    k, below, above = np.int64(state[WANTED + r]), np.int64(state[BELOW + r]), np.int64(state[ABOVE + r])
    low, peak, middle, pace = state[LOW + r], state[PEAK + r], state[MIDDLE + r], state[PACE + r]
    threshold, room = search(row, n, k, low, below, peak, above, middle, pace, np.int64(0), row)
    return threshold, tie_of(row, n, threshold, room) if room else EVERYWHERE


@compiled
def limits_of_tile(job, batch, head, first, rows, scores, state):
    """Note threshold, tie and `norm` of a tile's rows, by top-k, as `limits` finds them for each."""
    begin, end = bounds(job, batch)
    stride = padded(job.keys)
    for start in range(0, rows, LANES):
        some = min(LANES, rows - start)
        lines = floats_after(scores, start * stride)
        at = (batch * job.heads + head) * job.queries + first + start
        threshold, tie = floats_after(floats_at(job.threshold), at), indices_after(indices_at(job.tie), at)
        for place in range(STATE * LANES):
            state[place] = ZERO
        for r in range(LANES):  # nothing is looked for in those that are no rows
            state[WANTED + r] = -ONE
        for r in range(some):
            row, n = floats_after(lines, r * stride), end_of(job, first + start + r, begin, end)
            seen, low, high, mean, spread = surveyed(job, row, n, floats_at(job.norm + 8 * (at + r)))
            k = np.int64(indices_at(job.counts)[seen])
            tie[r] = EVERYWHERE
            if k < seen:
                hint = floats_at(job.hints + 8 * seen)
                begin_search(state, r, low, high, seen, k, mean + spread * hint[0], spread * hint[1])
            else:
                state[FOUND + r] = low if seen > 0 else INFINITY
        for step in range(COUNTS):
            for r in range(some):
                n = end_of(job, first + start + r, begin, end)
                row = floats_after(lines, r * stride)
                state[NUMBER + r] = np.float32(count_from(row, padded(n), state[MIDDLE + r]))
            if narrow(state, step) == 0:
                break
        for r in range(some):
            threshold[r] = state[FOUND + r]
            if threshold[r] != threshold[r]:
                n = end_of(job, first + start + r, begin, end)
                threshold[r], tie[r] = alone(floats_after(lines, r * stride), n, state, r)
