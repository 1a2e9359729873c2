"""The backward pass where every query has chosen blocks for itself: five products for each block."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.block_rows import slopes_of
from crisp_attention.kernels.cpu.block_tiles import ZERO, key_numbers, show
from crisp_attention.kernels.cpu.chosen_tiles import entries_of, put_in_order
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.panels import add_gathered, multiply_scattered, pack
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.weights import drop


@entry(JOB)
def backward(jobs):
    """Take groups of keys until none is left."""
    job = carray(jobs, 1)[0]
    size, most = job.block_size, job.most_blocks
    stride, blocks = most * size, (job.keys + size - 1) // size
    room = stride + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    starts = indices_at(scratch + 12 * room)
    entries = indices_after(starts, blocks)
    lists = indices_after(entries, job.tile * most)
    row_at = indices_after(lists, job.tile * most)
    tile = floats_at(scratch + 12 * room + 4 * (blocks + job.tile * (2 * most + 1)))
    grads = floats_after(tile, job.tile * stride)
    packed_key = floats_after(grads, job.tile * stride)
    packed_value = floats_after(packed_key, blocks * size * job.width)
    shared, tiles = job.heads // job.groups, (job.queries + job.tile - 1) // job.tile
    item = next_item(jobs)
    while item < job.chunks * job.batch * job.groups:
        group, batch = item % job.groups, item // job.groups % job.batch
        begin, end = bounds(job, batch)
        key = keys_of(job, batch, group)
        value = values_of(job, batch, group)
        pack(packed_key, size, key, job.key_row, end - begin, job.width, job.scale)
        pack(packed_value, size, value, job.value_row, end - begin, job.value_width, 1.0)
        key_grad = floats_at(job.key_grad + 4 * (item * job.keys + begin) * job.width)
        value_grad = floats_at(job.value_grad + 4 * (item * job.keys + begin) * job.value_width)
        # later tiles see more: chunks take them in turn
        for t in range(item // (job.groups * job.batch), tiles, job.chunks):
            first = t * job.tile
            rows = min(job.tile, job.queries - first)
            for head in range(group * shared, (group + 1) * shared):
                query = floats_at(
                    job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
                )
                grad = floats_at(
                    job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + first * job.grad_row)
                )
                query_grad = floats_at(
                    job.query_grad
                    + 4
                    * (batch * job.query_grad_batch + head * job.query_grad_head + first * job.query_grad_row)
                )
                begun = (batch * job.heads + head) * job.queries + first
                put_in_order(job, begun, rows, blocks, stride, starts, entries, lists)
                for b in range(blocks):
                    found, count = entries_of(b, starts, entries, stride, job.query_row, row_at)
                    strip = floats_after(packed_key, b * size * job.width)
                    multiply_scattered(tile, found, query, row_at, strip, size, job.width, count, size, False)
                    found, count = entries_of(b, starts, entries, stride, job.grad_row, row_at)
                    strip, there = (
                        floats_after(packed_value, b * size * job.value_width),
                        end - begin - b * size,
                    )
                    multiply_scattered(
                        grads, found, grad, row_at, strip, size, job.value_width, count, size, False
                    )
                    for e in range(count):
                        line = floats_after(grads, found[e])
                        for j in range(max(there, 0), size):
                            line[j] = ZERO
                for r in range(rows):
                    seen = np.int64(indices_at(job.block_counts)[begun + r])
                    row, own = floats_after(tile, r * stride), indices_after(lists, r * most)
                    show(job, row, 0, end_of(job, first + r, begin, end), own, own, seen)
                    if job.dropout > 0:
                        key_numbers(job, begin, own, seen, index)
                        drop(work, index, seen * size, job.dropout, job.seed, begun + r)
                    if seen > 0:
                        slopes = floats_after(grads, r * stride)
                        slopes_of(job, row, slopes, seen * size, begun + r, index, kept, work)
                    for d in range(job.width):
                        query_grad[r * job.query_grad_row + d] = ZERO
                for b in range(blocks):
                    start, there = b * size, min(size, end - begin - b * size)
                    found, count = entries_of(b, starts, entries, stride, job.query_grad_row, row_at)
                    multiply_scattered(
                        query_grad, row_at, grads, found, floats_after(key, start * job.key_row), job.key_row,
                        there, count, job.width, True,
                    )  # fmt: skip
                    found, count = entries_of(b, starts, entries, stride, job.query_row, row_at)
                    add_gathered(
                        floats_after(key_grad, start * job.width), job.width, grads, found, query, row_at,
                        count, there, job.width,
                    )  # fmt: skip
                    found, count = entries_of(b, starts, entries, stride, job.grad_row, row_at)
                    add_gathered(
                        floats_after(value_grad, start * job.value_width), job.value_width, tile, found, grad,
                        row_at, count, there, job.value_width,
                    )  # fmt: skip
        item = next_item(jobs)
