"""The backward pass of linear attention to chosen blocks: first all queries, then all keys and values."""

from numba import carray

from crisp_attention.kernels.cpu.linear.features import ONE, ZERO, dot, energies, features, through_features
from crisp_attention.kernels.cpu.linear.forward import attended
from crisp_attention.kernels.cpu.linear.job import LINEAR
from crisp_attention.kernels.cpu.linear.plan import LEAST, STRETCH
from crisp_attention.kernels.cpu.linear.sums import (
    block_sums,
    blocks_of,
    choose,
    rows_at,
    rows_in,
    sum_size,
)
from crisp_attention.kernels.cpu.native import (
    bytes_at,
    compiled,
    doubles_at,
    entry,
    floats_after,
    floats_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.panels import multiply, pack


@compiled
def zeros(job, rows, stride, begin, end, width):
    """Zero the rows from `begin` to `end`, unless gradients are added to what is there."""
    for r in range(begin, 0 if job.add else end):
        line = floats_after(rows, r * stride)
        for d in range(width):
            line[d] = ZERO


@entry(LINEAR)
def query_gradients(jobs):
    """Take blocks of queries until none is left: their gradients.

    Those of the sums that they chose take the place of these.
    """
    job = carray(jobs, 1)[0]
    count, each, shared = blocks_of(job), sum_size(job), job.heads // job.groups
    width, size = job.width, job.features
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    phi = floats_at(scratch)
    found = floats_after(phi, job.size * size)
    slope = floats_after(found, job.size * width)
    grads = floats_after(slope, job.size * width)
    turned = floats_after(grads, job.size * size)
    weighed = floats_after(turned, size * width)
    down = floats_after(weighed, job.size)
    # every segment adds the gradients of weights up by itself, so that they do not depend on the order of threads
    items, segment = job.pairs * shared * count, next_item(jobs)
    while segment < job.segments:
        weight_grad = floats_at(job.weight_grad + 4 * segment * width * width)
        bias_grad = doubles_at(job.bias_grad + 8 * segment * width)
        for item in range(segment * items // job.segments, (segment + 1) * items // job.segments):
            pair, block = job.first + item // (shared * count), item % count
            batch, head, first = (
                pair // job.groups,
                pair % job.groups * shared + item // count % shared,
                block * job.size,
            )
            rows = rows_in(job, batch, block)
            chosen = floats_at(job.chosen + 4 * item * each)
            attended(job, batch, head, block, rows, chosen, phi, found, weighed)
            grad = rows_at(job.grad, job.grad_batch, job.grad_head, job.grad_row, batch, head, first)
            if job.weight != 0:
                weight = floats_at(job.weight)
                multiply(slope, width, grad, job.grad_row, 1, weight, width, width, rows, width, False)
                multiply(weight_grad, width, grad, 1, job.grad_row, found, width, rows, width, width, True)
            for r in range(rows):
                line, given = floats_after(slope, r * width), floats_after(grad, r * job.grad_row)
                if job.weight == 0:
                    for d in range(width):
                        line[d] = given[d]
                elif weighed[r] != ZERO:
                    for d in range(width):
                        bias_grad[d] += given[d]
                there = weighed[r] != ZERO
                share = ONE / weighed[r] if there else ONE
                down[r] = -share * dot(line, floats_after(found, r * width), width) if there else ZERO
                for d in range(width):
                    line[d] *= share
            pack(turned, size, chosen, width, size, width, 1.0)
            multiply(grads, size, slope, width, 1, turned, size, width, rows, size, False)
            weights = floats_after(chosen, size * width)
            for r in range(rows):
                line = floats_after(grads, r * size)
                for f in range(size):
                    line[f] += down[r] * weights[f]
            block_sums(job, chosen, phi, slope, width, down, rows)
            energies(doubles_at(job.squares + 8 * item * size), chosen, weights, size, width)
            through_features(job.map, grads, phi, rows, size)
            query_grad = rows_at(
                job.query_grad,
                job.query_grad_batch,
                job.query_grad_head,
                job.query_grad_row,
                batch,
                head,
                first,
            )
            for r in range(rows):
                line, own = floats_after(query_grad, r * job.query_grad_row), floats_after(grads, r * size)
                for f in range(size):
                    line[f] = own[f] + line[f] if job.add else own[f]
            zeros(job, query_grad, job.query_grad_row, rows, min(job.size, job.tokens - first), size)
        segment = next_item(jobs)


@entry(LINEAR)
def spared_slopes(jobs):
    """Take blocks of keys until none is left: whether, in one feature, the gradients of those that chose them are too
    small to remain of the sum of all.
    """
    job = carray(jobs, 1)[0]
    count, shared, size = blocks_of(job), job.heads // job.groups, job.features
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    kept, left = doubles_at(scratch), doubles_at(scratch + 8 * size)
    item = next_item(jobs)
    while item < job.pairs * count:
        local, block = item // count, item % count
        flags = bytes_at(job.marginal + (job.first + local) * shared * count * count + block)
        for f in range(size):
            kept[f] = left[f] = 0.0
        for other in range(shared * count):
            squares = doubles_at(job.squares + 8 * (local * shared * count + other) * size)
            goal = kept if flags[other * count] != 0 else left
            for f in range(size):
                goal[f] += squares[f]
        enough = True
        for f in range(size):
            enough = enough and kept[f] >= LEAST * LEAST * left[f]
        bytes_at(job.direct)[item] = 0 if enough else 1
        item = next_item(jobs)


@entry(LINEAR)
def chosen_slopes(jobs):
    """Take stretches until none is left: gradients of the sums of every block of keys, from all that chose it.

    They take the place of the sums.
    """
    job = carray(jobs, 1)[0]
    count, each, shared = blocks_of(job), sum_size(job), job.heads // job.groups
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    stretches = (each + STRETCH - 1) // STRETCH
    item = next_item(jobs)
    while item < job.pairs * stretches:
        local, begin = item // stretches, item % stretches * STRETCH
        sums = floats_at(job.sums + 4 * local * count * each)
        slopes = floats_at(job.chosen + 4 * local * shared * count * each)
        flags = bytes_at(job.marginal + (job.first + local) * shared * count * count)
        end = min(begin + STRETCH, each)
        direct = bytes_at(job.direct + local * count)
        choose(
            job, sums, slopes, count, shared, flags, count * count, 1, count, direct, begin, end, scratch
        )  # fmt: skip
        item = next_item(jobs)


@entry(LINEAR)
def key_gradients(jobs):
    """Take blocks of keys until none is left: their gradients, and those of their values."""
    job = carray(jobs, 1)[0]
    count, each = blocks_of(job), sum_size(job)
    width, size = job.width, job.features
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    phi = floats_at(scratch)
    grads = floats_after(phi, job.size * size)
    turned = floats_after(grads, job.size * size)
    item = next_item(jobs)
    while item < job.pairs * count:
        pair, block = job.first + item // count, item % count
        batch, group, first = pair // job.groups, pair % job.groups, block * job.size
        rows = rows_in(job, batch, block)
        chosen = floats_at(job.sums + 4 * item * each)
        key = rows_at(job.key, job.key_batch, job.key_head, job.key_row, batch, group, first)
        value = rows_at(job.value, job.value_batch, job.value_head, job.value_row, batch, group, first)
        key_grad = rows_at(
            job.key_grad, job.key_grad_batch, job.key_grad_head, job.key_grad_row, batch, group, first
        )
        value_grad = rows_at(
            job.value_grad, job.value_grad_batch, job.value_grad_head, job.value_grad_row, batch, group, first
        )
        features(job.map, phi, key, job.key_row, rows, size)
        multiply(value_grad, job.value_grad_row, phi, size, 1, chosen, width, size, rows, width, job.add != 0)
        pack(turned, size, chosen, width, size, width, 1.0)
        multiply(grads, size, value, job.value_row, 1, turned, size, width, rows, size, False)
        weights = floats_after(chosen, size * width)
        for r in range(rows):
            line = floats_after(grads, r * size)
            for f in range(size):
                line[f] += weights[f]
        through_features(job.map, grads, phi, rows, size)
        for r in range(rows):
            line, own = floats_after(key_grad, r * job.key_grad_row), floats_after(grads, r * size)
            for f in range(size):
                line[f] = own[f] + line[f] if job.add else own[f]
        there = min(job.size, job.tokens - first)
        zeros(job, key_grad, job.key_grad_row, rows, there, size)
        zeros(job, value_grad, job.value_grad_row, rows, there, width)
        item = next_item(jobs)
