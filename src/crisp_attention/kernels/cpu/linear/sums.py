"""Sums over blocks of tokens, and of those of some blocks."""

import numpy as np

from crisp_attention.kernels.cpu.linear.plan import STRETCH
from crisp_attention.kernels.cpu.linear.vectors import gather_exactly
from crisp_attention.kernels.cpu.native import (
    bytes_after,
    compiled,
    doubles_after,
    doubles_at,
    floats_after,
    floats_at,
    indices_at,
)
from crisp_attention.kernels.cpu.panels import multiply
from crisp_attention.kernels.cpu.plan import LANES

ZERO = np.float32(0)
WIDTH = 4 * LANES


@compiled
def blocks_of(job):
    """How many blocks there are."""
    return (job.tokens + job.size - 1) // job.size


@compiled
def sum_size(job):
    """Numbers in the sums of a block: Σ φ v' row by row, then Σ φ."""
    return job.features * (job.width + 1)


@compiled
def rows_in(job, batch, block):
    """How many real tokens a block has."""
    length = job.tokens if job.lengths == 0 else indices_at(job.lengths)[batch]
    return max(min(job.size, length - block * job.size), 0)


@compiled
def rows_at(address, batch_stride, head_stride, row_stride, batch, head, row):
    """Where a row of a strided tensor begins."""
    return floats_at(address + 4 * (batch * batch_stride + head * head_stride + row * row_stride))


@compiled
def block_sums(job, out, left, right, stride, scale, rows):
    """out = Σ left[r]' right[r], then Σ left[r] scale[r], over r < rows; without `scale` for those of 1."""
    multiply(out, job.width, left, 1, job.features, right, stride, rows, job.features, job.width, False)
    last = floats_after(out, job.features * job.width)
    for f in range(job.features):
        last[f] = ZERO
    for r in range(rows):
        line = floats_after(left, r * job.features)
        for f in range(job.features):
            last[f] += line[f] * scale[r]


@compiled
def add_blocks(exact, start, sums, size, index, count, width):
    """exact[:width] = start + the sum of sums[index[t] * size :][:width] over t < count; 16 divides `width`."""
    for i in range(width):
        exact[i] = start[i]
    i = 0
    while width - i >= WIDTH:
        gather_exactly(doubles_after(exact, i), floats_after(sums, i), size, index, count, WIDTH)
        i += WIDTH
    while i < width:
        gather_exactly(doubles_after(exact, i), floats_after(sums, i), size, index, count, LANES)
        i += LANES


@compiled
def listed(index, flags, line_step, step, lines, count, wanted):
    """Into `index`, the blocks j of lines l, as l * count + j, whose flag is `wanted`; returns how many."""
    found = 0
    for line in range(lines):
        for j in range(count):
            index[found] = np.int32(line * count + j)
            found += (flags[line * line_step + j * step] != 0) == wanted
    return found


@compiled
def choose(job, out, sums, outs, lines, flags, line_step, out_step, step, direct, begin, end, scratch):
    """out[o, begin:end] = the sum of sums[l, j, begin:end] over the blocks j and `lines` lines l that o has flagged.

    Whether it has is at flags[l * line_step + o * out_step + j * step]. Where it has most of them, the others are taken
    from the sum of all instead, in float64, unless that is not finite or `direct[o]` says that too little would remain.
    """
    count, size, width = blocks_of(job), sum_size(job), end - begin
    nothing = doubles_at(scratch)
    less, exact = doubles_after(nothing, STRETCH), doubles_after(nothing, 2 * STRETCH)
    index = indices_at(scratch + 24 * STRETCH)
    part = floats_after(sums, begin)
    for i in range(width):
        nothing[i] = 0.0
    for j in range(lines * count):
        index[j] = np.int32(j)
    add_blocks(less, nothing, part, size, index, lines * count, width)
    sound = True  # what is not finite may come from blocks that are not chosen
    for i in range(width):
        less[i] = -less[i]
        sound = sound and less[i] - less[i] == 0.0
    for o in range(outs):
        own = bytes_after(flags, o * out_step)
        number = listed(index, own, line_step, step, lines, count, True)
        most = sound and direct[o] == 0 and 2 * number > lines * count
        if most:
            number = listed(index, own, line_step, step, lines, count, False)
        add_blocks(exact, less if most else nothing, part, size, index, number, width)
        sign, goal = np.float64(-1 if most else 1), floats_after(out, o * size + begin)
        for i in range(width):
            goal[i] = np.float32(sign * exact[i])
