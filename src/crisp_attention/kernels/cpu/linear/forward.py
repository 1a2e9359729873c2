"""Linear attention to chosen blocks: block sums of keys, then queries with those that they chose."""

from numba import carray

from crisp_attention.kernels.cpu.linear.features import ONE, ZERO, dot, features
from crisp_attention.kernels.cpu.linear.job import LINEAR
from crisp_attention.kernels.cpu.linear.plan import LEAST, STRETCH
from crisp_attention.kernels.cpu.linear.sums import (
    add_blocks,
    block_sums,
    blocks_of,
    choose,
    listed,
    rows_at,
    rows_in,
    sum_size,
)
from crisp_attention.kernels.cpu.native import (
    bytes_at,
    compiled,
    doubles_after,
    doubles_at,
    entry,
    floats_after,
    floats_at,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.panels import multiply


@entry(LINEAR)
def key_sums(jobs):
    """Take blocks of keys until none is left."""
    job = carray(jobs, 1)[0]
    count, each = blocks_of(job), sum_size(job)
    phi = floats_at(job.scratch + 4 * job.scratch_size * next_thread(jobs))
    ones = floats_after(phi, job.size * job.features)
    for r in range(job.size):
        ones[r] = ONE
    item = next_item(jobs)
    while item < job.pairs * count:
        pair, block = job.first + item // count, item % count
        batch, group, first = pair // job.groups, pair % job.groups, block * job.size
        rows = rows_in(job, batch, block)
        key = rows_at(job.key, job.key_batch, job.key_head, job.key_row, batch, group, first)
        value = rows_at(job.value, job.value_batch, job.value_head, job.value_row, batch, group, first)
        features(job.map, phi, key, job.key_row, rows, job.features)
        block_sums(job, floats_at(job.sums + 4 * item * each), phi, value, job.value_row, ones, rows)
        item = next_item(jobs)


@entry(LINEAR)
def spared_sums(jobs):
    """Take blocks of queries until none is left: whether what they chose is too little to be left of the sum of all.

    It is where, in one feature, the chosen keys have less than 2**-20 of what the others have.
    """
    job = carray(jobs, 1)[0]
    count, each, shared, size = blocks_of(job), sum_size(job), job.heads // job.groups, job.features
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    nothing = doubles_at(scratch)
    kept, left = doubles_after(nothing, size), doubles_after(nothing, 2 * size)
    index = indices_at(scratch + 24 * size)
    for f in range(size):
        nothing[f] = 0.0
    item = next_item(jobs)
    while item < job.pairs * shared * count:
        weights = floats_at(job.sums + 4 * (item // (shared * count) * count * each + size * job.width))
        flags = bytes_at(job.marginal + (job.first * shared * count + item) * count)
        number = listed(index, flags, 0, 1, 1, count, True)
        add_blocks(kept, nothing, weights, each, index, number, size)
        number = listed(index, flags, 0, 1, 1, count, False)
        add_blocks(left, nothing, weights, each, index, number, size)
        enough = True
        for f in range(size):
            enough = enough and kept[f] >= LEAST * left[f]
        bytes_at(job.direct)[item] = 0 if enough else 1
        item = next_item(jobs)


@entry(LINEAR)
def chosen_sums(jobs):
    """Take stretches of a pair's sums until none is left: for every block of queries, those of the blocks it chose."""
    job = carray(jobs, 1)[0]
    count, each, shared = blocks_of(job), sum_size(job), job.heads // job.groups
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    stretches = (each + STRETCH - 1) // STRETCH
    item = next_item(jobs)
    while item < job.pairs * stretches:
        local, begin = item // stretches, item % stretches * STRETCH
        sums = floats_at(job.sums + 4 * local * count * each)
        chosen = floats_at(job.chosen + 4 * local * shared * count * each)
        flags = bytes_at(job.marginal + (job.first + local) * shared * count * count)
        end = min(begin + STRETCH, each)
        direct = bytes_at(job.direct + local * shared * count)
        choose(job, chosen, sums, shared * count, 1, flags, 0, count, 1, direct, begin, end, scratch)
        item = next_item(jobs)


@compiled
def attended(job, batch, head, block, rows, chosen, phi, found, weighed):
    """φ of a block of queries, what it attends to, (rows, width), and what that weighs."""
    query = rows_at(job.query, job.query_batch, job.query_head, job.query_row, batch, head, block * job.size)
    features(job.map, phi, query, job.query_row, rows, job.features)
    width = job.width
    multiply(found, width, phi, job.features, 1, chosen, width, job.features, rows, width, False)
    weights = floats_after(chosen, job.features * width)
    for r in range(rows):
        weighed[r] = dot(floats_after(phi, r * job.features), weights, job.features)
        # 0 over 0 is 0 here: nothing is attended to
        share = ONE / weighed[r] if weighed[r] != ZERO else ONE
        line = floats_after(found, r * width)
        for d in range(width):
            line[d] *= share


@entry(LINEAR)
def attend(jobs):
    """Take blocks of queries until none is left."""
    job = carray(jobs, 1)[0]
    count, each, shared, width = blocks_of(job), sum_size(job), job.heads // job.groups, job.width
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    phi = floats_at(scratch)
    found = floats_after(phi, job.size * job.features)
    item = next_item(jobs)
    while item < job.pairs * shared * count:
        pair, block = job.first + item // (shared * count), item % count
        batch, head, first = (
            pair // job.groups,
            pair % job.groups * shared + item // count % shared,
            block * job.size,
        )
        rows = rows_in(job, batch, block)
        weighed = floats_at(job.weighed + 4 * ((batch * job.heads + head) * job.tokens + first))
        chosen = floats_at(job.chosen + 4 * item * each)
        attended(job, batch, head, block, rows, chosen, phi, found, weighed)
        out = rows_at(job.out, job.out_batch, job.out_head, job.out_row, batch, head, first)
        base = rows_at(job.base, job.base_batch, job.base_head, job.base_row, batch, head, first)
        there = min(job.size, job.tokens - first)
        for r in range(there):
            line, below = floats_after(out, r * job.out_row), floats_after(base, r * job.base_row)
            for d in range(width):
                line[d] = below[d] if job.base != 0 else ZERO
            if r >= rows:
                weighed[r] = ZERO
            own = floats_after(found, r * width) if job.weight == 0 else floats_at(job.bias)
            for d in range(width if weighed[r] != ZERO else 0):
                line[d] += own[d]
        if job.weight != 0:
            weight = floats_at(job.weight)
            multiply(out, job.out_row, found, width, 1, weight, width, width, rows, width, True)
        item = next_item(jobs)
