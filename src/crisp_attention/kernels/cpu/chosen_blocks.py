"""Blocks that every query chooses for itself: by the products with the mean keys of those before its own."""

import numpy as np
from numba import carray

from crisp_attention.kernels.cpu.block_tiles import ZERO
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
from crisp_attention.kernels.cpu.selection import EVERYWHERE, HALF, INFINITY, finite, kth_largest, padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, own_of
from crisp_attention.kernels.cpu.vectors import survey

TILE = 32  # queries


@compiled
def _means(job, key, keys, means):
    """Mean keys of the blocks, a row each; returns the first key with a number that is not finite."""
    size, broken = job.block_size, keys
    for start in range(0, keys, size):
        mean, count = floats_after(means, start // size * job.width), min(size, keys - start)
        for d in range(job.width):
            mean[d] = ZERO
        for j in range(start, start + count):
            row = floats_after(key, j * job.key_row)
            for d in range(job.width):
                mean[d] += row[d]
        if broken == keys and not finite(mean, 0, 1, job.width):
            for j in range(start, start + count):
                if broken == keys and not finite(floats_after(key, j * job.key_row), 0, 1, job.width):
                    broken = np.int64(j)
        for d in range(job.width):
            mean[d] /= np.float32(count)
    return broken


@compiled
def pick(job, row, own, spoilt, bits):
    """Write which of the blocks up to its own a query keeps, as bits; returns how many."""
    columns = padded(own + 1)
    for word in range(job.words):
        bits[word] = 0
    near, forced = own - job.local_blocks, np.int64(0)
    for b in range(own + 1, columns):
        row[b] = -INFINITY
    for b in range(own + 1):
        if b < job.sink_blocks or b > near:
            row[b] = -INFINITY
            forced += 1
    rest = np.int64(indices_at(job.shares)[own + 1]) - forced
    threshold, tie = INFINITY, EVERYWHERE
    if spoilt:
        threshold = -INFINITY
    elif rest > 0:
        low, high, seen, _, _, _ = survey(row, columns)
        threshold = low
        if rest < seen:
            threshold, tie = kth_largest(row, columns, seen, rest, low, high, low + (high - low) * HALF, ZERO)
    count = 0
    for b in range(own + 1):
        best = row[b] > threshold or (row[b] == threshold and b <= tie)
        if spoilt or best or b < job.sink_blocks or b > near:
            bits[b >> 5] |= np.int32(1) << np.int32(b & 31)
            count += 1
    return count


@entry(JOB)
def choose(jobs):
    """Take chunks of the queries of a key head until none is left."""
    job = carray(jobs, 1)[0]
    size, shared = job.block_size, job.heads // job.groups
    blocks = (job.keys + size - 1) // size
    columns = padded(blocks)
    scratch = floats_at(job.scratch + 4 * job.scratch_size * next_thread(jobs))
    means = floats_after(scratch, columns * TILE)
    packed, done, broken = floats_after(means, blocks * job.width), np.int64(-1), np.int64(0)
    share = (job.queries + job.chunks - 1) // job.chunks
    item = next_item(jobs)
    while item < job.batch * job.groups * job.chunks:
        batch, group = item // job.chunks // job.groups, item // job.chunks % job.groups
        begin, end = bounds(job, batch)
        if item // job.chunks != done:
            done = item // job.chunks
            key = keys_of(job, batch, group)
            broken = _means(job, key, end - begin, means)
            there = (end - begin + size - 1) // size
            pack(packed, columns, means, job.width, there, job.width, job.scale)
        for head in range(group * shared, (group + 1) * shared):
            stop = min(item % job.chunks * share + share, job.queries)
            for first in range(item % job.chunks * share, stop, TILE):
                rows = min(TILE, stop - first)
                query = floats_at(
                    job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
                )
                last = max(own_of(job, first + rows - 1, begin, end), 0) // size
                width = padded(last + 1)
                multiply(
                    scratch, columns, query, job.query_row, 1, packed, columns, job.width, rows, width, False
                )
                for r in range(rows):
                    at = (batch * job.heads + head) * job.queries + first + r
                    own = own_of(job, first + r, begin, end)
                    row = floats_after(scratch, r * columns)
                    bits = indices_after(indices_at(job.chosen), at * job.words)
                    spoilt = end_of(job, first + r, begin, end) > broken or not finite(
                        row, 0, 1, max(own, 0) // size
                    )
                    number = 0
                    if own < 0:
                        for word in range(job.words):
                            bits[word] = 0
                    else:
                        number = pick(job, row, own // size, spoilt, bits)
                    indices_at(job.block_counts)[at] = np.int32(number)
        item = next_item(jobs)
