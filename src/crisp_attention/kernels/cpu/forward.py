"""The forward pass of the row rules: a tile of scores, then row by row what is kept, its weights, their sum."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu import plan
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
from crisp_attention.kernels.cpu.full_rows import finite_values, in_place, place, scale_by, spread, sum_values
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.limits import choose, limits, take
from crisp_attention.kernels.cpu.native import (
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.plan import LANES, STATE, STRIP
from crisp_attention.kernels.cpu.rows import gather_sum
from crisp_attention.kernels.cpu.scores import pack_head, score_tile
from crisp_attention.kernels.cpu.selection import EVERYWHERE, padded
from crisp_attention.kernels.cpu.short_columns import are_few, attend_few, scale_keys
from crisp_attention.kernels.cpu.short_rows import SHORT_ROW, limits_of_tile, listless
from crisp_attention.kernels.cpu.spans import bounds, end_of, values_of
from crisp_attention.kernels.cpu.weights import NAN, ONE, drop, weigh, with_sink


@entry(JOB)
def forward(jobs):
    """Take tiles of rows until none is left."""
    job = carray(jobs, 1)[0]
    room = padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    state, lists = floats_at(scratch + 12 * room), scratch + 12 * room + 4 * STATE * LANES
    part = part_of(job, 2)
    scores = floats_at(lists)
    counts = indices_at(lists + 4 * job.tile * padded(job.keys))
    cursors = indices_after(counts, job.tile)
    packed = floats_at(lists + 4 * (job.tile * padded(job.keys) + padded(2 * job.tile)))
    strips = ((job.keys if job.whole else STRIP) + STRIP - 1) // STRIP
    queries = floats_after(packed, strips * STRIP * job.width)
    columns_of_few = floats_after(queries, STRIP * job.width)
    threshold, tie = floats_at(job.threshold), indices_at(job.tie)
    packed_group, sound, few = np.int64(-1), False, False
    tiles = (job.queries + job.tile - 1) // job.tile
    item = next_item(jobs)
    while item < job.batch * job.heads * tiles:
        head, first = item // tiles % job.heads, item % tiles * job.tile
        batch = item // (tiles * job.heads)
        rows = min(job.tile, job.queries - first)
        group = head // (job.heads // job.groups)
        if packed_group != batch * job.groups + group and job.rule != plan.RANDOM:
            packed_group, few = batch * job.groups + group, are_few(job, batch)
            sound = (job.full != 0 or few or listless(job, batch)) and finite_values(job, batch, group)
            few = few and sound
            if few:
                scale_keys(job, batch, group, packed)
            else:
                pack_head(job, batch, group, packed)
        if few:
            attend_few(job, batch, head, first, rows, packed, queries, columns_of_few, state, kept)
            item = next_item(jobs)
            continue
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
        known = job.rule == plan.TOPK and columns <= SHORT_ROW
        if known:
            limits_of_tile(job, batch, head, first, rows, scores, state)
        for r in range(0 if weighed else rows):
            i = first + r
            at = (batch * job.heads + head) * job.queries + i
            norm = floats_at(job.norm + 8 * at)
            out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + i * job.out_row))
            row, n = floats_after(scores, r * padded(job.keys)), end_of(job, i, begin, end)
            if full and in_place(job):
                if not known:
                    threshold[at], tie[at] = limits(job, row, n, index, kept, work, norm)
                high = norm[0]
                norm[1] += place(row, n, columns, threshold[at], tie[at], high)
                if job.sinks:
                    with_sink(floats_at(job.sinks)[head], norm)
                scale_by(row, columns, high, norm)
                continue
            if job.rule == plan.ALPHA_ENTMAX:
                tie[at] = EVERYWHERE
                count = kept_by_entmax(row, n, threshold[at], index, kept)
            elif job.rule == plan.RANDOM:
                count, threshold[at], tie[at] = choose_drawn(
                    job, batch, head, i, row, n, index, kept, work, norm
                )
            elif known:
                count, _ = take(job, row, n, threshold[at], tie[at], index, kept, work, norm)
            else:
                count, threshold[at], tie[at] = choose(job, row, n, index, kept, work, norm)
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
