"""Tiles of queries that chose their blocks one by one, put in order by block: each block is one product."""

import numpy as np

from crisp_attention.kernels.cpu.native import compiled, indices_after, indices_at


@compiled
def put_in_order(job, at, rows, blocks, stride, starts, entries, lists):
    """Where the scores of each block begin in a tile, block by block; `starts[b]` is the end of those of block b.

    `lists[r * most + s]` is the block of slot s of row r, whose scores begin at r * stride + s * size.
    """
    most, size = job.most_blocks, job.block_size
    chosen, counts = indices_at(job.chosen), indices_at(job.block_counts)
    for b in range(blocks):
        starts[b] = 0
    for r in range(rows):
        bits, count = indices_after(chosen, (at + r) * job.words), 0
        for b in range(blocks if counts[at + r] else 0):
            if (bits[b >> 5] >> np.int32(b & 31)) & np.int32(1):
                lists[r * most + count] = np.int32(b)
                starts[b] += np.int32(1)
                count += 1
    total = np.int32(0)
    for b in range(blocks):
        number = starts[b]
        starts[b] = total
        total += number
    for r in range(rows):
        for s in range(counts[at + r]):
            b = lists[r * most + s]
            entries[starts[b]] = np.int32(r * stride + s * size)
            starts[b] += np.int32(1)


@compiled
def entries_of(block, starts, entries, stride, step, at):
    """The entries of a block: where they begin and how many; writes where their rows begin in steps of `step`."""
    first = np.int64(starts[block - 1]) if block > 0 else np.int64(0)
    found = indices_after(entries, first)
    count = np.int64(starts[block]) - first
    for e in range(count):
        at[e] = np.int32(found[e] // stride * step)
    return found, count
