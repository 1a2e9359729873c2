"""A few new queries that choose blocks for themselves: all products once, for the choice and for the scores."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.block_rows import keep
from crisp_attention.kernels.cpu.block_tiles import ZERO
from crisp_attention.kernels.cpu.chosen_blocks import pick
from crisp_attention.kernels.cpu.dots import row_dots
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    compiled,
    entry,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.rows import gather_sum
from crisp_attention.kernels.cpu.selection import INFINITY, finite, floored, padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, own_of, values_of
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
def _gather(job, scores, keys, bits, seen, row):
    """List the keys of the chosen blocks and their scores, -inf up to whole vectors; returns how many."""
    size, count = job.block_size, 0
    for b in range((keys + size - 1) // size):
        if (bits[b >> 5] >> np.int32(b & 31)) & np.int32(1):
            for j in range(b * size, min(b * size + size, keys)):
                seen[count], row[count] = np.int32(j), floored(scores[j])
                count += 1
    for t in range(count, padded(count)):
        row[t] = -INFINITY
    return count


@entry(JOB)
def step(jobs):
    """Take queries until none is left."""
    job = carray(jobs, 1)[0]
    size = job.block_size
    blocks, room = (job.keys + size - 1) // size, padded(job.keys) + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    scores, row = floats_at(scratch + 12 * room), floats_at(scratch + 16 * room)
    seen, ranked = indices_at(scratch + 20 * room), floats_at(scratch + 24 * room)
    bits = indices_after(indices_at(scratch + 24 * room), padded(blocks) + LANES)
    item = next_item(jobs)
    while item < job.batch * job.heads * job.queries:
        i, head = item % job.queries, item // job.queries % job.heads
        batch = item // (job.queries * job.heads)
        group = head // (job.heads // job.groups)
        begin, end = bounds(job, batch)
        key = keys_of(job, batch, group)
        query = floats_at(
            job.query + 4 * (batch * job.query_batch + head * job.query_head + i * job.query_row)
        )
        out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + i * job.out_row))
        keys, own = end_of(job, i, begin, end), own_of(job, i, begin, end)
        count = 0
        if own >= 0 and keys > 0:
            row_dots(scores, query, key, job.key_row, keys, job.width, np.float32(job.scale))
            _rank(job, scores, keys, ranked)
            spoilt = not finite(ranked, 0, 1, (keys + size - 1) // size)
            pick(job, ranked, own // size, spoilt, bits)
            count = _gather(job, scores, keys, bits, seen, row)
            keep(job, row, padded(count), item, index, kept, work)
            if job.dropout > 0:
                for t in range(count):  # numbered as `key_numbers` does, so that both kernels drop the same
                    index[t] = seen[t] + np.int32(begin)
                drop(work, index, count, job.dropout, job.seed, item)
                for t in range(count):
                    row[t] *= work[t]
        gather_sum(out, values_of(job, batch, group), job.value_row, seen, row, count, job.value_width, False)
        item = next_item(jobs)
