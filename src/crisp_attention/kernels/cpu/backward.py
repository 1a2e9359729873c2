"""The backward pass of the row rules: scores computed again, and for what was kept all three gradients.

An item of work is all queries of one chunk over one group of keys, so that no two threads add to one row.
"""

import math

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu import selection
from crisp_attention.kernels.cpu.chunks import differentiate_chunks, part_of, put
from crisp_attention.kernels.cpu.drawn import draw, drawn_scores
from crisp_attention.kernels.cpu.entmax import (
    entmax_gradient,
    entmax_tile_gradients,
    exponent_of,
    keeps_much_of,
    kept_by_entmax,
    weigh_and_slope,
)
from crisp_attention.kernels.cpu.full_rows import (
    finite_keys,
    finite_values,
    in_place,
    pack_values,
    row_gradients,
    sound_tile,
    spread,
    sum_gradients,
    weight_gradients,
)
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    compiled,
    doubles_at,
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.plan import ALPHA_ENTMAX, LANES, RANDOM, STRIP
from crisp_attention.kernels.cpu.rows import gather_dot, gather_sum, scatter_add
from crisp_attention.kernels.cpu.scores import bias_of, pack_head, score_tile
from crisp_attention.kernels.cpu.selection import INFINITY, padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.weights import NAN, drop, score_gradient, spoil, sunk_gradient, uncap, weigh


@compiled
def _seen(row, n, index):
    # the keys that a row of scores sees, listed
    count = 0
    for j in range(n):
        if row[j] != -INFINITY:
            index[count] = np.int32(j)
            count += 1
    return count


@compiled
def _learn_bias(job, batch, head, i, row, n, index, grad, count, spoilt):
    if job.bias_grad:
        at = batch * job.bias_grad_batch + head * job.bias_grad_head + i * job.bias_grad_row
        own = floats_at(job.bias_grad + 4 * (at + bounds(job, batch)[0]))
        for t in range(count):
            own[index[t]] = grad[t]
        for j in range(n if spoilt else 0):
            if row[j] != -INFINITY:
                own[j] = NAN


@compiled
def _learn_sink(job, slot, head, norm, mean, count):
    # `mean` is the gradient of the kept weights' mean, which a sink draws to its own 0
    if count > 0 or norm[1] != norm[1]:
        share = np.float32(math.exp(floats_at(job.sinks)[head] - norm[0])) / norm[1]
        floats_at(job.sinks_grad)[slot * job.heads + head] -= share * mean


@entry(JOB)
def backward(jobs):
    """Take groups of keys until none is left."""
    job = carray(jobs, 1)[0]
    room = padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    factor, rise = floats_at(scratch + 12 * room), floats_at(scratch + 16 * room)
    lists, part = scratch + 20 * room, part_of(job, 3)
    scores = floats_at(lists)
    counts = indices_at(lists + 4 * job.tile * padded(job.keys))
    cursors = indices_after(counts, job.tile)
    packed = floats_at(lists + 4 * (job.tile * padded(job.keys) + padded(2 * job.tile)))
    # of rows of which much is kept: the gradients of all weights, and later of all scores
    strips = ((job.keys if job.whole else STRIP) + STRIP - 1) // STRIP
    slopes = floats_after(packed, strips * STRIP * job.width)
    packed_values = floats_after(slopes, job.tile * padded(job.keys))
    shared = job.heads // job.groups
    tiles = (job.queries + job.tile - 1) // job.tile
    share = (tiles + job.chunks - 1) // job.chunks
    placed = in_place(job) and not job.softcap > 0 and not job.sinks and not job.bias_grad
    item = next_item(jobs)
    while item < job.chunks * job.batch * job.groups:
        group, batch = item % job.groups, item // job.groups % job.batch
        first_tile = item // (job.groups * job.batch) * share
        begin, end = bounds(job, batch)
        if job.rule != RANDOM:
            pack_head(job, batch, group, packed)
        sound = job.full != 0 and finite_keys(job, batch, group) and finite_values(job, batch, group)
        if sound:
            pack_values(job, batch, group, packed_values)
        key = keys_of(job, batch, group)
        value = values_of(job, batch, group)
        key_grad = floats_at(job.key_grad + 4 * (item * job.keys + begin) * job.width)
        value_grad = floats_at(job.value_grad + 4 * (item * job.keys + begin) * job.value_width)
        for tile in range(first_tile, min(first_tile + share, tiles)):
            first = tile * job.tile
            rows = min(job.tile, job.queries - first)
            columns = padded(end_of(job, first + rows - 1, begin, end))
            for head in range(group * shared, (group + 1) * shared):
                if job.rule != RANDOM:
                    score_tile(job, batch, head, first, rows, packed, scores)
                full = sound and sound_tile(job, batch, head, first, rows)
                alpha, done = NAN, False
                if job.rule == ALPHA_ENTMAX:
                    alpha = exponent_of(job, head)
                    full = done = full and keeps_much_of(job, batch, head, first, rows, scores)
                if full:
                    weight_gradients(job, batch, head, first, rows, packed_values, slopes)
                if done:
                    entmax_tile_gradients(job, alpha, batch, head, first, rows, scores, slopes, kept, factor)
                for r in range(0 if done else rows):
                    i = first + r
                    at = (batch * job.heads + head) * job.queries + i
                    norm = floats_at(job.norm + 8 * at)
                    query = floats_at(
                        job.query + 4 * (batch * job.query_batch + head * job.query_head + i * job.query_row)
                    )
                    grad = floats_at(
                        job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + i * job.grad_row)
                    )
                    query_grad = floats_at(
                        job.query_grad
                        + 4
                        * (batch * job.query_grad_batch + head * job.query_grad_head + i * job.query_grad_row)
                    )
                    row, n = floats_after(scores, r * padded(job.keys)), end_of(job, i, begin, end)
                    threshold, tie = floats_at(job.threshold)[at], indices_at(job.tie)[at]
                    line = floats_after(slopes, r * padded(job.keys))
                    if full and placed:
                        row_gradients(job, row, line, n, columns, threshold, tie, norm)
                        continue
                    if job.rule == RANDOM:
                        draw(job, batch, head, i, n, row, index)
                        count = drawn_scores(job, batch, head, i, row, n, threshold, tie, index, kept)
                    elif job.rule == ALPHA_ENTMAX:
                        count = kept_by_entmax(row, n, threshold, index, kept)
                    else:
                        count = selection.kept_of(job, row, n, threshold, tie, index, kept)
                    if job.rule == ALPHA_ENTMAX:  # from here on the row is its slopes
                        weigh_and_slope(alpha, job.own_grad != 0, kept, count, norm, row, rise)
                    else:
                        weigh(job.rule, kept, count, norm)
                    counts[r] = 0
                    if 0 < count <= part and norm[1] == norm[1]:
                        counts[r] = np.int32(count)
                        put(lists + 4 * r * padded(job.keys), part, index, kept, count)
                        continue
                    if full:
                        for t in range(count):
                            work[t] = line[index[t]]
                    else:
                        gather_dot(work, grad, value, job.value_row, index, count, job.value_width)
                    weights = kept
                    if job.dropout > 0:
                        drop(factor, index, count, job.dropout, job.seed, at)
                        for t in range(count):
                            work[t] *= factor[t]
                            factor[t] *= kept[t]
                        weights = factor
                    if not full:
                        scatter_add(value_grad, job.value_width, index, weights, count, grad, job.value_width)
                    spoilt = norm[1] != norm[1]
                    if job.sinks:
                        mean = sunk_gradient(kept, work, count)
                        _learn_sink(job, item // job.groups, head, norm, mean, count)
                    elif job.rule == ALPHA_ENTMAX:
                        own = entmax_gradient(alpha, job.own_grad != 0, row, rise, work, count)
                        if job.own_grad:
                            doubles_at(job.own_grad)[at] = NAN if spoilt else own
                    else:
                        score_gradient(job.rule, kept, work, count)
                    _learn_bias(job, batch, head, i, row, n, index, work, count, spoilt)
                    if job.softcap > 0:
                        uncap(job, row, bias_of(job, batch, head, i), index, count, work)
                    for t in range(count):
                        work[t] *= job.scale
                    if full:
                        spread(row, columns, index, weights, count)
                        spread(line, columns, index, work, count)
                    else:
                        gather_sum(query_grad, key, job.key_row, index, work, count, job.width, False)
                        scatter_add(key_grad, job.width, index, work, count, query, job.width)
                    if spoilt and job.rule != RANDOM:  # which spoils none but the keys it draws
                        count = _seen(row, n, index)
                        spoil(index, count, query_grad, key_grad, value_grad, job.width, job.value_width)
                if full:
                    sum_gradients(job, batch, head, first, rows, scores, slopes, key_grad, value_grad)
                elif part > 0:
                    differentiate_chunks(
                        job, batch, head, first, rows, lists, part, counts, cursors, key_grad, value_grad
                    )
        item = next_item(jobs)
