"""Scores and weights of a tile of queries over the strips of keys that it sees, side by side.

Keys are counted from the first valid one of their example. A strip is seen whole by all queries of the tile, as far
as keys are valid, or by the numbers of a band.
"""

import numpy as np

from crisp_attention.kernels.cpu import plan, selection
from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.native import compiled, floats_after, indices_at
from crisp_attention.kernels.cpu.panels import multiply
from crisp_attention.kernels.cpu.selection import INFINITY
from crisp_attention.kernels.cpu.spans import end_of, own_of
from crisp_attention.kernels.cpu.weights import weigh

ONE, ZERO = np.float32(1), np.float32(0)


@compiled
def reach_of(job):
    """The distance of the farthest key that a band shows."""
    return max(job.reach, job.local - 1)


@compiled
def rows_of(job, block, begin, end):
    """The queries of a tile: the first, and how many."""
    size = job.block_size
    if job.blocks == 0:
        return block * size, min(size, job.queries - block * size)
    first = begin + block * size
    return first, max(min(size, end - first), 0)


@compiled
def strips_of(job, batch, head, block, first, rows, begin, end, strips, whole):
    """Write which strips a tile sees, in order, and which of them whole; returns how many."""
    size = job.block_size
    if rows == 0:
        return 0
    keys = end_of(job, first + rows - 1, begin, end)
    listed, at = np.int64(0), np.int64(0)
    blocks = indices_at(job.blocks)
    if job.blocks:
        tile = (batch * job.heads + head) * ((job.queries + size - 1) // size) + block
        blocks, listed = (
            indices_at(job.blocks + 4 * tile * job.listed_blocks),
            np.int64(indices_at(job.block_counts)[tile]),
        )
    low, high, before = keys, np.int64(0), np.int64(0)
    if job.band:
        one, other = own_of(job, first, begin, end), own_of(job, first + rows - 1, begin, end)
        low, high, before = one - reach_of(job), other + reach_of(job) + 1, job.global_tokens
        if one < before and other >= 0:
            low, high = np.int64(0), keys
    count = 0
    for strip in range((keys + size - 1) // size):
        while at < listed and blocks[at] < strip:
            at += 1
        full = at < listed and blocks[at] == strip
        start = strip * size
        if full or (start < high and start + size > low) or start < before:
            strips[count], whole[count] = np.int32(strip), np.int32(full)
            count += 1
    return count


@compiled
def products(job, rows, a, stride_a, packed, width, strips, seen, keys, tile, stride):
    """tile[:rows] = a · the seen strips of `packed`, 0 where the last is short of `keys`."""
    size = job.block_size
    for c in range(seen):
        first = strips[c] * size
        columns, right = floats_after(tile, c * size), floats_after(packed, first * width)
        multiply(columns, stride, a, stride_a, 1, right, size, width, rows, size, False)
        for r in range(rows if keys - first < size else 0):
            line = floats_after(columns, r * stride)
            for j in range(keys - first, size):
                line[j] = ZERO


@compiled
def show(job, line, own, keys, strips, whole, seen):
    """Scores as rules see them: -inf where the row of a query does not see the key, and nowhere else."""
    size = job.block_size
    anchor = 0 <= own < job.global_tokens
    near = reach_of(job)
    for c in range(seen):
        start = strips[c] * size
        columns = floats_after(line, c * size)
        there = max(min(keys - start, size), 0)
        for j in range(there):
            columns[j] = selection.floored(columns[j])
        for j in range(there, size):
            columns[j] = -INFINITY
        if job.band and not whole[c] and not anchor:
            first = max(job.global_tokens - start, 0)
            for j in range(first, min(own - near - start, there)):
                columns[j] = -INFINITY
            for j in range(max(own + near + 1 - start, first), there):
                columns[j] = -INFINITY
            if job.dilation > 1:
                for j in range(max(own - near - start, first), min(own + near + 1 - start, there)):
                    far = abs(start + j - own)
                    if far >= job.local and (far > job.reach or far % job.dilation):
                        columns[j] = -INFINITY


@compiled
def weigh_row(job, row, columns, threshold, tie, norm, index, kept):
    """Weights in place of a row's scores, by what the row rule has chosen; zero where nothing is kept."""
    if job.rule == plan.DENSE:
        exponentials(row, row, norm[0], columns)
        share = ONE / norm[1]
        for j in range(columns):
            row[j] *= share
        return
    count = selection.kept_of(job, row, columns, threshold, tie, index, kept)
    weigh(job.rule, kept, count, norm)
    for j in range(columns):
        row[j] = ZERO
    for t in range(count):
        row[index[t]] = kept[t]


@compiled
def key_numbers(job, begin, strips, seen, numbers):
    """The key that each column of a tile belongs to."""
    for c in range(seen):
        first = begin + strips[c] * job.block_size
        for j in range(job.block_size):
            numbers[c * job.block_size + j] = np.int32(first + j)


@compiled
def clear(base, stride, width, block, size, first, rows, queries):
    """Zeros in the rows of a tile beside those that are computed, and before the first tile."""
    if block == 0:
        _zeros(base, stride, width, 0, first)
    _zeros(base, stride, width, first + rows, min(first + size, queries))


@compiled
def _zeros(base, stride, width, first, end):
    for i in range(first, end):
        for d in range(width):
            base[i * stride + d] = ZERO
