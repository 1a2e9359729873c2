"""The forward pass of the row rules: a tile of scores, then row by row what is kept, its weights, their sum."""

import math

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu import plan, selection
from crisp_attention.kernels.cpu.chunks import part_of, put, sum_chunks
from crisp_attention.kernels.cpu.drawn import choose_drawn
from crisp_attention.kernels.cpu.entmax import (
    choose_entmax,
    exponent_of,
    keeps_much_of,
    kept_by_entmax,
    weigh_entmax,
    weigh_entmax_tile,
)
from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.full_rows import finite_values, in_place, place, scale_by, spread, sum_values
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    bits_of,
    compiled,
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.rows import gather_sum
from crisp_attention.kernels.cpu.scores import pack_head, score_tile
from crisp_attention.kernels.cpu.selection import EVERYWHERE, INFINITY, LOWEST, kept_of, padded, spoiled
from crisp_attention.kernels.cpu.spans import bounds, end_of, values_of
from crisp_attention.kernels.cpu.top_mass import fewest_with_mass
from crisp_attention.kernels.cpu.vectors import compact, survey
from crisp_attention.kernels.cpu.weights import NAN, ONE, drop, weigh, with_sink


@compiled
def limits(job, row, n, index, kept, work, norm):
    """Threshold and tie of a row, an infinite threshold where nothing is kept; writes `norm` but for a sum.

    N:M has a threshold for each group. In place of the row's it leaves a first guess at them, and the pace of the
    search as bits.
    """
    low, high, seen, broken, total, squares = survey(row, padded(n))
    # next to a sink, scores of -inf alone have no weight, as it takes all
    drowned = job.sinks != 0 and broken == 0 and high == LOWEST
    spoilt = spoiled(high, broken)
    norm[0], norm[1] = high, NAN if spoilt and not drowned else np.float32(0)
    threshold, tie = low, EVERYWHERE
    if seen == 0 or spoilt:
        return INFINITY, EVERYWHERE
    number = np.float32(seen)
    mean = total / number
    spread = np.float32(math.sqrt(max(squares / number - mean * mean, np.float32(0))))
    if job.rule == plan.TOPK or job.rule == plan.TOPK_TOPP:
        k = np.int64(indices_at(job.counts)[seen])
        if k < seen:
            hint = floats_at(job.hints + 8 * seen)
            threshold, tie = selection.kth_of_row(row, n, seen, k, low, high, mean, spread, hint, kept)
            if job.rule == plan.TOPK_TOPP:
                least, last = fewest_with_mass(row, n, job.mass, low, high, work, index, kept)
                if least < threshold or (least == threshold and last > tie):
                    threshold, tie = least, last
    elif job.rule == plan.TOPP:
        threshold, tie = fewest_with_mass(row, n, job.mass, low, high, work, index, kept)
    elif job.rule == plan.THRESHOLD:
        threshold = max(np.float32(high + np.float32(job.level)), low)
    elif job.rule == plan.NOFM:
        if job.m > LANES:
            threshold, pace = selection.hint_of(job.n, job.m, mean, spread, high)
            tie = bits_of(pace)
    elif job.rule == plan.ENTMAX15:
        threshold = max(high - np.float32(2), low)
    elif job.rule == plan.SPARSEMAX:
        threshold = max(high - np.float32(1), low)
    return threshold, tie


@compiled
def choose(job, row, n, index, kept, work, norm):
    """What the rule keeps of a row: its number, and `limits`; writes `index`, `kept` and `norm`."""
    threshold, tie = limits(job, row, n, index, kept, work, norm)
    if threshold == INFINITY:
        return 0, threshold, tie
    high = norm[0]
    count = kept_of(job, row, n, threshold, tie, index, kept)
    if job.rule == plan.ENTMAX15 or job.rule == plan.SPARSEMAX:
        norm[1] = selection.entmax_tau(job.rule, kept, count, high)
        scale = np.float32(2) if job.rule == plan.ENTMAX15 else np.float32(1)
        # a little below τ: what lies between weighs nothing
        threshold = max(threshold, high + scale * norm[1] - (abs(high) + np.float32(1)) * np.float32(1e-6))
        count = compact(row, padded(n), threshold, tie, index, kept)
    else:
        norm[1] = _total(kept, count, high, work)
    return count, threshold, tie


@compiled
def _total(kept, count, high, work):
    for t in range(count):
        work[t] = kept[t]
    return exponentials(work, high, count)


@entry(JOB)
def forward(jobs):
    """Take tiles of rows until none is left."""
    job = carray(jobs, 1)[0]
    room = padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    lists, part = scratch + 12 * room, part_of(job, 2)
    scores = floats_at(lists)
    counts = indices_at(lists + 4 * job.tile * padded(job.keys))
    cursors = indices_after(counts, job.tile)
    packed = floats_at(lists + 4 * (job.tile * padded(job.keys) + padded(2 * job.tile)))
    packed_group, sound = np.int64(-1), False
    tiles = (job.queries + job.tile - 1) // job.tile
    item = next_item(jobs)
    while item < job.batch * job.heads * tiles:
        head, first = item // tiles % job.heads, item % tiles * job.tile
        batch = item // (tiles * job.heads)
        rows = min(job.tile, job.queries - first)
        group = head // (job.heads // job.groups)
        if packed_group != batch * job.groups + group and job.rule != plan.RANDOM:
            packed_group = batch * job.groups + group
            pack_head(job, batch, group, packed)
            sound = job.full != 0 and finite_values(job, batch, group)
        if job.rule != plan.RANDOM:
            score_tile(job, batch, head, first, rows, packed, scores)
        value = values_of(job, batch, group)
        begin, end = bounds(job, batch)
        alpha, full, weighed = NAN, sound, False
        if job.rule == plan.ALPHA_ENTMAX:
            alpha = exponent_of(job, head)
            choose_entmax(job, alpha, batch, head, first, rows, scores, index, kept)
            full = weighed = sound and keeps_much_of(job, batch, head, first, rows, scores)
            if full:
                weigh_entmax_tile(job, alpha, batch, head, first, rows, scores)
        columns = padded(end_of(job, first + rows - 1, begin, end))
        for r in range(0 if weighed else rows):
            i = first + r
            at = (batch * job.heads + head) * job.queries + i
            norm = floats_at(job.norm + 8 * at)
            out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + i * job.out_row))
            row, n = floats_after(scores, r * padded(job.keys)), end_of(job, i, begin, end)
            if full and in_place(job):
                threshold, tie = limits(job, row, n, index, kept, work, norm)
                floats_at(job.threshold)[at], indices_at(job.tie)[at] = threshold, tie
                high = norm[0]
                norm[1] += place(row, n, columns, threshold, tie, high)
                if job.sinks:
                    with_sink(floats_at(job.sinks)[head], norm)
                scale_by(row, columns, high, norm)
                continue
            if job.rule == plan.ALPHA_ENTMAX:
                threshold, tie = floats_at(job.threshold)[at], EVERYWHERE
                count = kept_by_entmax(row, n, threshold, index, kept)
            elif job.rule == plan.RANDOM:
                count, threshold, tie = choose_drawn(job, batch, head, i, row, n, index, kept, work, norm)
            else:
                count, threshold, tie = choose(job, row, n, index, kept, work, norm)
            floats_at(job.threshold)[at], indices_at(job.tie)[at] = threshold, tie
            if job.sinks:
                with_sink(floats_at(job.sinks)[head], norm)
            if job.rule == plan.ALPHA_ENTMAX:
                weigh_entmax(alpha, kept, count, norm)
            elif job.rule == plan.ENTMAX15 or job.rule == plan.SPARSEMAX or job.sinks:
                weigh(job.rule, kept, count, norm)
            else:  # the sum left the exponentials in `work`
                share = ONE / norm[1]
                for t in range(count):
                    kept[t] = work[t] * share
            if job.dropout > 0:
                drop(work, index, count, job.dropout, job.seed, at)
                for t in range(count):
                    kept[t] *= work[t]
            counts[r] = 0
            if full:
                spread(row, columns, index, kept, count)
            elif 0 < count <= part and norm[1] == norm[1]:
                counts[r] = np.int32(count)
                put(lists + 4 * r * padded(job.keys), part, index, kept, count)
            else:
                gather_sum(out, value, job.value_row, index, kept, count, job.value_width, False)
            if norm[1] != norm[1] and full:
                row[0] = NAN
            elif norm[1] != norm[1]:
                for d in range(job.value_width):
                    out[d] = NAN
        if full:
            sum_values(job, batch, head, first, rows, scores)
        elif part > 0:
            sum_chunks(job, batch, head, first, rows, lists, part, counts, cursors)
        item = next_item(jobs)
