"""Scores and weights of one block of queries over the blocks of keys that it sees, side by side."""

import numpy as np

from crisp_attention.kernels.cpu import plan, selection
from crisp_attention.kernels.cpu.native import compiled, floats_after, indices_at
from crisp_attention.kernels.cpu.panels import multiply
from crisp_attention.kernels.cpu.selection import INFINITY
from crisp_attention.kernels.cpu.vectors import exponentials
from crisp_attention.kernels.cpu.weights import weigh

ONE, ZERO = np.float32(1), np.float32(0)


@compiled
def seen_blocks(job, batch, head, block):
    """Where the list of key blocks begins that a block of queries sees, and how many they are."""
    at = (batch * job.heads + head) * ((job.queries + job.block_size - 1) // job.block_size) + block
    return job.blocks + 4 * at * job.most_blocks, indices_at(job.block_counts)[at]


@compiled
def products(job, rows, a, stride_a, packed, width, blocks, seen, length, tile, stride, scores):
    """tile[:rows] = a · the seen blocks of `packed`; where the last is short of keys 0, or -inf for `scores`."""
    size = job.block_size
    absent = -INFINITY if scores else ZERO
    for c in range(seen):
        first = indices_at(blocks)[c] * size
        columns = floats_after(tile, c * size)
        right = floats_after(packed, first * width)
        multiply(columns, stride, a, stride_a, 1, right, size, width, rows, size, False)
        keys = min(length - first, size)
        for r in range(rows):
            line = floats_after(columns, r * stride)
            for j in range(keys if scores else 0):
                line[j] = selection.floored(line[j])
            for j in range(keys, size):
                line[j] = absent


@compiled
def weigh_row(job, row, columns, threshold, tie, norm, index, kept):
    """Weights in place of a row's scores, by what the row rule has chosen; zero where nothing is kept."""
    if job.rule == plan.DENSE:
        exponentials(row, norm[0], columns)
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
def key_numbers(job, blocks, seen, numbers):
    """The key that each column of a tile belongs to."""
    for c in range(seen):
        first = indices_at(blocks)[c] * job.block_size
        for j in range(job.block_size):
            numbers[c * job.block_size + j] = np.int32(first + j)
