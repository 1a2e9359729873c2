"""A few new queries that choose blocks for themselves: all products once, for the choice and for the scores."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.block_rows import keep
from crisp_attention.kernels.cpu.block_tiles import ZERO, bounds, end_of, own_of
from crisp_attention.kernels.cpu.chosen_blocks import finite, pick
from crisp_attention.kernels.cpu.dots import row_dots
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
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.rows import gather_sum
from crisp_attention.kernels.cpu.scores import all_keys_of, padded, values_of
from crisp_attention.kernels.cpu.selection import INFINITY, floored
from crisp_attention.kernels.cpu.weights import drop


@compiled
def _rank(job, scores, keys, ranked):
    """The mean of a row's products with each block."""
    size = job.block_size
    for start in range(0, keys, size):
        total, count = ZERO, min(size, keys - start)
        for j in range(start, start + count):
            total += scores[j]
        ranked[start // size] = total / np.float32(count)


@compiled
def _gather(job, scores, keys, bits, row):
    """The scores of the blocks that are chosen, side by side, -inf up to whole vectors; returns how many."""
    size, count = job.block_size, 0
    for b in range((keys + size - 1) // size):
        if (bits[b >> 5] >> np.int32(b & 31)) & np.int32(1):
            for j in range(b * size, min(b * size + size, keys)):
                row[count] = floored(scores[j])
                count += 1
    for t in range(count, padded(count)):
        row[t] = -INFINITY
    return count


@compiled
def _number(job, keys, bits, index):
    """The keys of the blocks that are chosen."""
    size, count = job.block_size, 0
    for b in range((keys + size - 1) // size):
        if (bits[b >> 5] >> np.int32(b & 31)) & np.int32(1):
            for j in range(b * size, min(b * size + size, keys)):
                index[count] = np.int32(j)
                count += 1


@entry(JOB)
def step(jobs):
    """Take queries until none is left."""
    job = carray(jobs, 1)[0]
    size = job.block_size
    blocks, room = (job.keys + size - 1) // size, padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    scores, row = floats_at(scratch + 12 * room), floats_at(scratch + 16 * room)
    ranked = floats_at(scratch + 20 * room)
    bits = indices_after(indices_at(scratch + 20 * room), padded(blocks) + LANES)
    item = next_item(jobs)
    while item < job.batch * job.heads * job.queries:
        i, head, batch = (
            item % job.queries,
            item // job.queries % job.heads,
            item // (job.queries * job.heads),
        )
        group = head // (job.heads // job.groups)
        begin, end = bounds(job, batch)
        key = floats_after(all_keys_of(job, batch, group), begin * job.key_row)
        query = floats_at(
            job.query + 4 * (batch * job.query_batch + head * job.query_head + i * job.query_row)
        )
        out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + i * job.out_row))
        keys, own = end_of(job, i, begin, end), own_of(job, i, begin, end)
        count = 0
        if own >= 0 and keys > 0:
            row_dots(scores, query, key, job.key_row, keys, job.width, np.float32(job.scale))
            _rank(job, scores, keys, ranked)
            spoilt = not finite(ranked, (keys + size - 1) // size)
            pick(job, ranked, own // size, spoilt, bits)
            count = _gather(job, scores, keys, bits, row)
            keep(job, row, padded(count), item, index, kept, work)
            _number(job, keys, bits, index)
            if job.dropout > 0:
                for t in range(count):
                    index[t] += np.int32(begin)
                drop(work, index, count, job.dropout, job.seed, item)
                for t in range(count):
                    row[t] *= work[t]
                    index[t] -= np.int32(begin)
        gather_sum(out, values_of(job, batch, group), job.value_row, index, row, count, job.value_width)
        item = next_item(jobs)
