"""The forward pass where every query has chosen blocks for itself: a product for each block and those that chose it."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.block_rows import keep
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
from crisp_attention.kernels.cpu.panels import multiply_scattered, pack
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.weights import drop


@entry(JOB)
def forward(jobs):
    """Take tiles of queries until none is left."""
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
    packed, packed_group = floats_after(tile, job.tile * stride), np.int64(-1)
    tiles = (job.queries + job.tile - 1) // job.tile
    item = next_item(jobs)
    while item < job.batch * job.heads * tiles:
        head, first = item // tiles % job.heads, item % tiles * job.tile
        batch = item // (tiles * job.heads)
        group, rows = head // (job.heads // job.groups), min(job.tile, job.queries - first)
        begin, end = bounds(job, batch)
        key = keys_of(job, batch, group)
        if packed_group != batch * job.groups + group:
            packed_group = batch * job.groups + group
            pack(packed, size, key, job.key_row, end - begin, job.width, job.scale)
        value = values_of(job, batch, group)
        out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + first * job.out_row))
        query = floats_at(
            job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
        )
        begun = (batch * job.heads + head) * job.queries + first
        put_in_order(job, begun, rows, blocks, stride, starts, entries, lists)
        for b in range(blocks):
            found, count = entries_of(b, starts, entries, stride, job.query_row, row_at)
            strip = floats_after(packed, b * size * job.width)
            multiply_scattered(tile, found, query, row_at, strip, size, job.width, count, size, False)
        for r in range(rows):
            seen = np.int64(indices_at(job.block_counts)[begun + r])
            row, own = floats_after(tile, r * stride), indices_after(lists, r * most)
            show(job, row, 0, end_of(job, first + r, begin, end), own, own, seen)
            if seen > 0:
                keep(job, row, seen * size, begun + r, index, kept, work)
            if job.dropout > 0:
                key_numbers(job, begin, own, seen, index)
                drop(work, index, seen * size, job.dropout, job.seed, begun + r)
                for j in range(seen * size):
                    row[j] *= work[j]
            for d in range(job.value_width):
                out[r * job.out_row + d] = ZERO
        for b in range(blocks):
            found, count = entries_of(b, starts, entries, stride, job.out_row, row_at)
            right, there = floats_after(value, b * size * job.value_row), min(size, end - begin - b * size)
            multiply_scattered(
                out, row_at, tile, found, right, job.value_row, there, count, job.value_width, True
            )
        item = next_item(jobs)
