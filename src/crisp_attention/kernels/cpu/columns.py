"""The backward pass by columns: key by key, of what the queries of a tile kept of it.

A key's row, value and gradients stay in registers while the tile's queries are gathered from the first cache; row by
row, each query would gather keys, and add to their gradients, all over the second. A block of keys serves all queries
in turn, so longer rows take no longer for each pair. This is for rules of which thresholds tell what was kept, with
weights that are a softmax: the mean that its gradients are drawn to is the product of the output and its gradient.
"""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.column_lists import differentiate, list_strip
from crisp_attention.kernels.cpu.full_rows import gradients_of, queries_of
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    compiled,
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import LISTED, QUERIES, STRIP
from crisp_attention.kernels.cpu.rows import clear, copy_rows, gather_dot
from crisp_attention.kernels.cpu.selection import INFINITY, padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.weights import NAN, ONE, ZERO, drawn_of


@compiled
def _clear_others(job, item, begin, end):
    """Zero gradients of keys and values that are no valid keys."""
    for width, grads in ((job.width, job.key_grad), (job.value_width, job.value_grad)):
        rows = floats_at(grads + 4 * item * job.keys * width)
        clear(rows, begin * width)
        clear(floats_after(rows, end * width), (job.keys - end) * width)


@compiled
def _query_grad(job, batch, head, i):
    at = batch * job.query_grad_batch + head * job.query_grad_head + i * job.query_grad_row
    return floats_at(job.query_grad + 4 * at)


@compiled
def _read_rows(job, batch, head, first, rows, packed, query, grad):
    """A tile's queries, packed, and once more scaled and side by side; the gradients of its outputs side by side."""
    queries, grads = queries_of(job, batch, head, first), gradients_of(job, batch, head, first)
    pack(packed, QUERIES, queries, job.query_row, rows, job.width, ONE)
    copy_rows(query, queries, job.query_row, rows, job.width, job.scale)
    copy_rows(grad, grads, job.grad_row, rows, job.value_width, ONE)


@compiled
def _read_kept(job, batch, head, first, rows, grad, index, state, notes):
    """What the forward pass noted of a tile's rows, as `list_strip` has it; returns whether some are NaN."""
    at = (batch * job.heads + head) * job.queries + first
    thresholds, last = floats_at(job.threshold + 4 * at), indices_at(job.tie + 4 * at)
    norms, spoilt = floats_at(job.norm + 8 * at), False
    out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + first * job.out_row))
    index[0] = 0
    for r in range(QUERIES):
        state[r], notes[r] = INFINITY, np.int32(-1)
        state[QUERIES + r], state[2 * QUERIES + r], state[3 * QUERIES + r] = ZERO, ZERO, ZERO
        if r < rows and norms[2 * r + 1] != norms[2 * r + 1]:
            spoilt = True
        elif r < rows and norms[2 * r + 1] != 0:
            state[r], notes[r] = thresholds[r], last[r]
            state[QUERIES + r], state[2 * QUERIES + r] = norms[2 * r], ONE / norms[2 * r + 1]
            notes[QUERIES + r] = np.int32(drawn_of(job.seed, at + r))
            # in the order of the products that it is subtracted from: where they are equal, the difference is 0
            mean, row = floats_after(state, 3 * QUERIES + r), floats_after(out, r * job.out_row)
            own = floats_after(grad, r * job.value_width)
            gather_dot(mean, row, own, job.value_width, index, 1, job.value_width)
    return spoilt


@compiled
def _spoil(job, batch, head, first, rows, start, keys, key_grad, value_grad):
    """NaN in a row of scores is NaN in its gradient, and in those of the keys that it sees."""
    begin, end = bounds(job, batch)
    norms = floats_at(job.norm + 8 * ((batch * job.heads + head) * job.queries + first))
    for r in range(rows):
        if norms[2 * r + 1] != norms[2 * r + 1]:
            row = _query_grad(job, batch, head, first + r)
            for d in range(job.width):
                row[d] = NAN
            seen = min(end_of(job, first + r, begin, end) - start, keys)
            for t in range(seen * job.width):
                key_grad[t] = NAN
            for t in range(seen * job.value_width):
                value_grad[t] = NAN


@entry(JOB)
def backward(jobs):
    """Take groups of keys until none is left."""
    job = carray(jobs, 1)[0]
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, lists = indices_at(scratch), floats_at(scratch + 4 * LISTED)
    ends = indices_at(scratch + 20 * LISTED)
    notes, state = indices_after(ends, STRIP), floats_at(scratch + 20 * LISTED + 4 * (STRIP + 2 * QUERIES))
    scores = floats_after(state, 4 * QUERIES)
    packed = floats_after(scores, STRIP * QUERIES)
    query = floats_after(packed, QUERIES * job.width)
    grad = floats_after(query, QUERIES * job.width)
    keys = floats_after(grad, QUERIES * job.value_width)
    values = floats_after(keys, job.chunk_keys * job.width)
    shared = job.heads // job.groups
    tiles = (job.queries + QUERIES - 1) // QUERIES
    part = (tiles + job.chunks - 1) // job.chunks
    item = next_item(jobs)
    while item < job.chunks * job.batch * job.groups:
        group, batch = item % job.groups, item // job.groups % job.batch
        first_tile = item // (job.groups * job.batch) * part
        last_tile = min(first_tile + part, tiles)
        begin, end = bounds(job, batch)
        for head in range(group * shared, (group + 1) * shared):
            for i in range(first_tile * QUERIES, min(last_tile * QUERIES, job.queries)):
                clear(_query_grad(job, batch, head, i), job.width)
        _clear_others(job, item, begin, end)
        for start in range(0, end - begin, job.chunk_keys):
            number = min(job.chunk_keys, end - begin - start)
            rows_of_keys = floats_after(keys_of(job, batch, group), start * job.key_row)
            rows_of_values = floats_after(values_of(job, batch, group), start * job.value_row)
            copy_rows(keys, rows_of_keys, job.key_row, number, job.width, job.scale)
            copy_rows(values, rows_of_values, job.value_row, number, job.value_width, ONE)
            at = item * job.keys + begin + start
            key_grad = floats_at(job.key_grad + 4 * at * job.width)
            value_grad = floats_at(job.value_grad + 4 * at * job.value_width)
            clear(key_grad, number * job.width)
            clear(value_grad, number * job.value_width)
            for tile in range(first_tile, last_tile):
                first = tile * QUERIES
                rows = min(QUERIES, job.queries - first)
                seen = min(end_of(job, first + rows - 1, begin, end) - start, number)
                for head in range(group * shared, (group + 1) * shared if seen > 0 else 0):
                    _read_rows(job, batch, head, first, rows, packed, query, grad)
                    spoilt = _read_kept(job, batch, head, first, rows, grad, index, state, notes)
                    query_grad = _query_grad(job, batch, head, first)
                    for c in range(0, seen, STRIP):
                        some, columns = min(STRIP, seen - c), padded(rows)
                        strip, strip_values = (
                            floats_after(keys, c * job.width),
                            floats_after(values, c * job.value_width),
                        )
                        multiply(
                            scores,
                            QUERIES,
                            strip,
                            job.width,
                            1,
                            packed,
                            QUERIES,
                            job.width,
                            some,
                            columns,
                            False,
                        )
                        hidden = start + c + begin - job.first_query - first if job.causal else -STRIP
                        list_strip(scores, columns, some, start + c, hidden, state, notes, ends, index, lists)
                        differentiate(
                            job,
                            some,
                            start + c,
                            notes,
                            ends,
                            index,
                            lists,
                            strip,
                            strip_values,
                            query,
                            grad,
                            query_grad,
                            floats_after(key_grad, c * job.width),
                            floats_after(value_grad, c * job.value_width),
                        )
                    if spoilt:
                        _spoil(job, batch, head, first, rows, start, seen, key_grad, value_grad)
        item = next_item(jobs)
