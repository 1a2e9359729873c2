"""The forward pass of block layouts: only the strips of keys that a tile of queries sees are computed at all."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.block_rows import keep
from crisp_attention.kernels.cpu.block_tiles import clear, key_numbers, products, rows_of, show, strips_of
from crisp_attention.kernels.cpu.dots import row_dots
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
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, own_of, values_of
from crisp_attention.kernels.cpu.weights import drop


@entry(JOB)
def forward(jobs):
    """Take tiles of queries until none is left."""
    job = carray(jobs, 1)[0]
    size = job.block_size
    room = job.most_blocks * size + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    strips = indices_at(scratch + 12 * room)
    whole, tile = indices_after(strips, job.most_blocks), floats_at(scratch + 16 * room)
    packed, packed_group = floats_after(tile, 2 * size * size * job.most_blocks), np.int64(-1)
    tiles = (job.queries + size - 1) // size
    item = next_item(jobs)
    while item < job.batch * job.heads * tiles:
        head, block = item // tiles % job.heads, item % tiles
        batch = item // (tiles * job.heads)
        group = head // (job.heads // job.groups)
        begin, end = bounds(job, batch)
        first, rows = rows_of(job, block, begin, end)
        key = keys_of(job, batch, group)
        if job.whole and packed_group != batch * job.groups + group:
            packed_group = batch * job.groups + group
            pack(packed, size, key, job.key_row, end - begin, job.width, job.scale)
        value = values_of(job, batch, group)
        base = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head))
        out = floats_after(base, first * job.out_row)
        seen = strips_of(job, batch, head, block, first, rows, begin, end, strips, whole)
        columns = seen * size
        query = floats_at(
            job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
        )
        if job.whole:
            products(
                job, rows, query, job.query_row, packed, job.width, strips, seen, end - begin, tile, columns
            )
        for r in range(0 if job.whole else rows):
            one, line = floats_after(query, r * job.query_row), floats_after(tile, r * columns)
            for c in range(seen):
                start = strips[c] * size
                goal, right = floats_after(line, c * size), floats_after(key, start * job.key_row)
                there = min(size, end - begin - start)
                row_dots(goal, one, right, job.key_row, there, job.width, np.float32(job.scale))
        for r in range(rows if seen > 0 else 0):
            row = floats_after(tile, r * columns)
            own, keys = own_of(job, first + r, begin, end), end_of(job, first + r, begin, end)
            show(job, row, own, keys, strips, whole, seen)
            at = (batch * job.heads + head) * job.queries + first + r
            keep(job, row, columns, at, index, kept, work)
            if job.dropout > 0:
                key_numbers(job, begin, strips, seen, index)
                drop(work, index, columns, job.dropout, job.seed, at)
                for j in range(columns):
                    row[j] *= work[j]
        for c in range(seen):
            start = strips[c] * size
            right, keys = floats_after(value, start * job.value_row), min(size, end - begin - start)
            weights = floats_after(tile, c * size)
            width = job.value_width
            multiply(out, job.out_row, weights, columns, 1, right, job.value_row, keys, rows, width, c > 0)
        clear(base, job.out_row, job.value_width, block, size, first, rows if seen > 0 else 0, job.queries)
        item = next_item(jobs)
