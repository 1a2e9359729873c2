"""Examples with few keys: the scores of a tile transposed, so that 16 queries are searched, weighed and summed at once.

No sum or count goes across a vector. Weights are written where the scores are, with zeros: for so few keys, listing
what is kept takes longer than products with these.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.exponentials import exponential
from crisp_attention.kernels.cpu.full_rows import queries_of
from crisp_attention.kernels.cpu.native import compiled, floats_after, floats_at, indices_after, indices_at
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import FEW, LANES, STRIP, TOPK
from crisp_attention.kernels.cpu.rows import copy_rows
from crisp_attention.kernels.cpu.selection import EVERYWHERE, INFINITY, LOWEST, padded, spoiled
from crisp_attention.kernels.cpu.short_rows import (
    BELOW,
    COUNTS,
    FOUND,
    LOW,
    MIDDLE,
    NUMBER,
    PACE,
    PEAK,
    WANTED,
    alone,
    begin_search,
    narrow,
)
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.vectors import INT, INTS, POINTER, constant, fma, load, splat, store
from crisp_attention.kernels.cpu.weights import NAN, ONE, ZERO

# where a survey notes numbers of 16 queries that the search needs no more
SUM, SQUARES, BROKEN = MIDDLE, PACE, NUMBER


@compiled
def are_few(job, batch):
    """Whether an example's rows are best computed so, if its values are finite."""
    begin, end = bounds(job, batch)
    added = job.valid or job.bias or job.sinks or job.softcap > 0 or job.dropout > 0 or job.unpacked
    return job.rule == TOPK and job.whole and not added and end - begin <= FEW


@compiled
def scale_keys(job, batch, group, keys):
    """Lay out the keys of a head side by side, scaled."""
    begin, end = bounds(job, batch)
    copy_rows(keys, keys_of(job, batch, group), job.key_row, end - begin, job.width, job.scale)


@compiled
def attend_few(job, batch, head, first, rows, keys, packed, scores, state, work):
    """The outputs of a tile, and what is noted of its rows; `packed` and `scores` have room for STRIP of them."""
    begin, end = bounds(job, batch)
    seen = end_of(job, first + rows - 1, begin, end)
    query = queries_of(job, batch, head, first)
    pack(packed, STRIP, query, job.query_row, rows, job.width, ONE)
    multiply(scores, STRIP, keys, job.width, 1, packed, STRIP, job.width, seen, padded(rows), False)
    for start in range(0, rows, LANES):
        some = min(LANES, rows - start)
        hidden = begin - job.first_query - first - start if job.causal else np.int64(-FEW)
        at = (batch * job.heads + head) * job.queries + first + start
        lanes = floats_after(scores, start)
        _limits(job, first + start, some, begin, end, at, lanes, seen, hidden, state, work)
        _weigh(job, some, at, lanes, seen, state)
    out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + first * job.out_row))
    value = values_of(job, batch, head // (job.heads // job.groups))
    multiply(out, job.out_row, scores, 1, STRIP, value, job.value_row, seen, rows, job.value_width, False)


@compiled
def _limits(job, first, rows, begin, end, at, scores, keys, hidden, state, row):
    """Note threshold, tie and `norm` but for a sum of 16 queries."""
    threshold, tie = floats_after(floats_at(job.threshold), at), indices_after(indices_at(job.tie), at)
    survey_columns(scores, keys, hidden, state)
    left = False
    for r in range(rows):
        seen, norm = end_of(job, first + r, begin, end), floats_at(job.norm + 8 * (at + r))
        low, high = state[LOW + r], state[PEAK + r]
        number = np.float32(max(seen, 1))
        mean = state[SUM + r] / number
        spread = np.float32(math.sqrt(max(state[SQUARES + r] / number - mean * mean, ZERO)))
        spoilt = spoiled(high, np.int32(state[BROKEN + r] != 0))
        norm[0], norm[1] = high, NAN if spoilt else ZERO
        k = np.int64(indices_at(job.counts)[seen])
        tie[r] = EVERYWHERE
        if seen == 0 or spoilt:
            _settle(state, r, INFINITY)
        elif k < seen:
            hint = floats_at(job.hints + 8 * seen)
            begin_search(state, r, low, high, seen, k, mean + spread * hint[0], spread * hint[1])
            left = True
        else:
            _settle(state, r, low)
    for r in range(rows, LANES):
        _settle(state, r, INFINITY)
    for step in range(COUNTS if left else 0):
        count_columns(scores, keys, state)
        if narrow(state, step) == 0:
            break
    for r in range(rows):
        threshold[r] = state[FOUND + r]
        if threshold[r] != threshold[r]:
            n = end_of(job, first + r, begin, end)
            for j in range(padded(n)):
                row[j] = scores[j * STRIP + r] if j < n else -INFINITY
            threshold[r], tie[r] = alone(row, n, state, r)
            for j in range(np.int64(tie[r]) + 1, n):
                if row[j] == threshold[r]:
                    scores[j * STRIP + r] = -INFINITY


@compiled
def _settle(state, r, threshold):
    # a query of which nothing is looked for
    state[WANTED + r], state[MIDDLE + r], state[FOUND + r] = -ONE, ZERO, threshold
    state[LOW + r], state[PEAK + r], state[BELOW + r] = ZERO, ZERO, ZERO


@compiled
def _weigh(job, rows, at, scores, keys, state):
    """Weights of 16 queries in place of their scores, 0 of what is not kept."""
    threshold = floats_after(floats_at(job.threshold), at)
    for r in range(LANES):
        state[LOW + r] = threshold[r] if r < rows else INFINITY
        state[PEAK + r] = floats_at(job.norm + 8 * (at + r))[0] if r < rows else ZERO
    exponentials_of_columns(scores, keys, state)
    for r in range(rows):
        norm = floats_at(job.norm + 8 * (at + r))
        norm[1] += state[NUMBER + r]
        state[NUMBER + r] = ONE / norm[1] if norm[1] != 0 else ZERO
    scale_columns(scores, keys, state)


def _vector(builder: Any, scores: Any, j: Any) -> Any:
    return builder.gep(scores, [builder.mul(j, j.type(STRIP))])


@intrinsic
def survey_columns(typing, scores, keys, hidden, state):
    """Note smallest and largest score of 16 queries, their sum and sum of squares, and whether one is NaN.

    Scores of -inf become the lowest number, and those of the first `hidden` queries, one more for every key, -inf.
    """

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        scores, keys, hidden, state = arguments
        infinity, zeros, below = (constant(x) for x in (float("inf"), 0.0, -float("inf")))
        low, high, total, squares, broken = (
            cgutils.alloca_once_value(builder, x) for x in (infinity, below, zeros, zeros, zeros)
        )
        lanes, lowest = ir.Constant(INTS, list(range(LANES))), constant(float(LOWEST))
        with cgutils.for_range(builder, keys) as loop:
            place = _vector(builder, scores, loop.index)
            x = load(builder, place)
            x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
            number = splat(builder, builder.trunc(builder.add(hidden, loop.index), INT))
            there = builder.icmp_signed(">=", lanes, number)
            store(builder, builder.select(there, x, below), place)
            for extreme, order, other in ((low, "<", infinity), (high, ">", below)):
                old, new = builder.load(extreme), builder.select(there, x, other)
                builder.store(builder.select(builder.fcmp_ordered(order, new, old), new, old), extreme)
            value = builder.select(there, x, zeros)
            builder.store(builder.fadd(builder.load(total), value), total)
            builder.store(fma(builder, value, value, builder.load(squares)), squares)
            uneven = builder.fcmp_unordered("uno", value, value)
            builder.store(builder.select(uneven, constant(1.0), builder.load(broken)), broken)
        notes = (LOW, low), (PEAK, high), (SUM, total), (SQUARES, squares), (BROKEN, broken)
        for place, value in notes:
            store(builder, builder.load(value), state, place)
        return context.get_dummy_value()

    return types.void(POINTER, types.int64, types.int64, POINTER), code


@intrinsic
def count_columns(typing, scores, keys, state):
    """Note how many scores of 16 queries are at least their middles."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        scores, keys, state = arguments
        middle, kind = load(builder, state, MIDDLE), keys.type
        totals = [cgutils.alloca_once_value(builder, constant(0.0)) for _ in range(2)]

        def count(j: Any, total: Any) -> None:
            above = builder.fcmp_ordered(">=", load(builder, _vector(builder, scores, j)), middle)
            one = builder.select(above, constant(1.0), constant(0.0))
            builder.store(builder.fadd(builder.load(total), one), total)

        even = builder.and_(keys, kind(-2))
        with cgutils.for_range_slice(builder, kind(0), even, kind(2), kind) as (j, _):
            for chain, total in enumerate(totals):
                count(builder.add(j, kind(chain)), total)
        with builder.if_then(builder.icmp_signed("<", even, keys)):
            count(even, totals[0])
        store(builder, builder.fadd(*map(builder.load, totals)), state, NUMBER)
        return context.get_dummy_value()

    return types.void(POINTER, types.int64, POINTER), code


@intrinsic
def exponentials_of_columns(typing, scores, keys, state):
    """exp(score - PEAK) in place of scores of at least LOW, 0 of others, of 16 queries; notes the sums."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        scores, keys, state = arguments
        threshold, high = load(builder, state, LOW), load(builder, state, PEAK)
        total, zeros = cgutils.alloca_once_value(builder, constant(0.0)), constant(0.0)
        with cgutils.for_range(builder, keys) as loop:
            place = _vector(builder, scores, loop.index)
            x = load(builder, place)
            result = exponential(builder, builder.fsub(x, high))
            result = builder.select(builder.fcmp_ordered(">=", x, threshold), result, zeros)
            store(builder, result, place)
            builder.store(builder.fadd(builder.load(total), result), total)
        store(builder, builder.load(total), state, NUMBER)
        return context.get_dummy_value()

    return types.void(POINTER, types.int64, POINTER), code


@intrinsic
def scale_columns(typing, scores, keys, state):
    """Multiply the numbers of 16 queries by what is noted of each."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        scores, keys, state = arguments
        share = load(builder, state, NUMBER)
        with cgutils.for_range(builder, keys) as loop:
            place = _vector(builder, scores, loop.index)
            store(builder, builder.fmul(load(builder, place), share), place)
        return context.get_dummy_value()

    return types.void(POINTER, types.int64, POINTER), code
