"""The forward pass of block layouts: only the blocks that are seen are computed at all."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu import plan
from crisp_attention.kernels.cpu.block_tiles import ONE, ZERO, key_numbers, products, seen_blocks, weigh_row
from crisp_attention.kernels.cpu.forward import choose
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    entry,
    floats_after,
    floats_at,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.scores import keys_of
from crisp_attention.kernels.cpu.selection import spoiled
from crisp_attention.kernels.cpu.vectors import exponentials, survey
from crisp_attention.kernels.cpu.weights import NAN, drop


@entry(JOB)
def forward(jobs):
    """Take blocks of queries until none is left."""
    job = carray(jobs, 1)[0]
    size = job.block_size
    stride = job.most_blocks * size
    room = stride + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    tile = floats_at(scratch + 16 * room)
    packed, packed_group = floats_after(tile, 2 * size * stride), np.int64(-1)
    blocks_of_queries = (job.queries + size - 1) // size
    item = next_item(jobs)
    while item < job.batch * job.heads * blocks_of_queries:
        head, block = item // blocks_of_queries % job.heads, item % blocks_of_queries
        batch = item // (blocks_of_queries * job.heads)
        group, first = head // (job.heads // job.groups), block * size
        length = job.queries if job.lengths == 0 else indices_at(job.lengths)[batch]
        rows = max(min(size, length - first), 0)
        query = floats_at(
            job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
        )
        if packed_group != batch * job.groups + group:
            packed_group = batch * job.groups + group
            key = keys_of(job, batch, group)
            pack(packed, size, key, job.key_row, job.keys, job.width, job.scale)
        value = floats_at(job.value + 4 * (batch * job.value_batch + group * job.value_head))
        out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + first * job.out_row))
        blocks, seen = seen_blocks(job, batch, head, block)
        columns = seen * size
        products(job, rows, query, job.query_row, packed, job.width, blocks, seen, length, tile, stride, True)
        for r in range(rows):
            row = floats_after(tile, r * stride)
            at = (batch * job.heads + head) * job.queries + first + r
            norm = floats_at(job.norm + 8 * at)
            threshold, tie = floats_at(job.threshold), indices_at(job.tie)
            if job.rule == plan.DENSE:
                _, norm[0], _, broken, _, _ = survey(row, columns)
                norm[1] = exponentials(row, norm[0], columns)
                if spoiled(norm[0], broken):
                    norm[1] = NAN
                share = ONE / norm[1]
                for j in range(columns):
                    row[j] *= share
            else:
                _, threshold[at], tie[at] = choose(job, row, columns, index, kept, work, norm)
                weigh_row(job, row, columns, threshold[at], tie[at], norm, index, kept)
            if norm[1] != norm[1]:
                for j in range(columns):
                    row[j] = NAN
            if job.dropout > 0:
                key_numbers(job, blocks, seen, index)
                drop(work, index, columns, job.dropout, job.seed, at)
                for j in range(columns):
                    row[j] *= work[j]
        for c in range(seen):
            start = indices_at(blocks)[c] * size
            right, keys = floats_after(value, start * job.value_row), min(size, length - start)
            weights = floats_after(tile, c * size)
            width = job.value_width
            multiply(out, job.out_row, weights, stride, 1, right, job.value_row, keys, rows, width, c > 0)
        for r in range(rows if seen > 0 else 0, min(size, job.queries - first)):
            for d in range(job.value_width):
                out[r * job.out_row + d] = ZERO
        item = next_item(jobs)
