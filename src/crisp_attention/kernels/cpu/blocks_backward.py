"""The backward pass of block layouts: the tiles computed again, and four products over seen blocks."""

from numba import carray

from crisp_attention.kernels.cpu.block_tiles import ZERO, key_numbers, products, seen_blocks, weigh_row
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
from crisp_attention.kernels.cpu.weights import NAN, drop, score_gradient


@entry(JOB)
def backward(jobs):
    """Take groups of keys until none is left."""
    job = carray(jobs, 1)[0]
    size = job.block_size
    stride = job.most_blocks * size
    room = stride + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    tile = floats_at(scratch + 16 * room)
    grads = floats_after(tile, size * stride)
    packed_key = floats_after(grads, size * stride)
    packed_value = floats_after(packed_key, (job.keys + size - 1) // size * size * job.width)
    shared = job.heads // job.groups
    blocks_of_queries = (job.queries + size - 1) // size
    share = (blocks_of_queries + job.chunks - 1) // job.chunks
    item = next_item(jobs)
    while item < job.chunks * job.batch * job.groups:
        group, batch = item % job.groups, item // job.groups % job.batch
        begin = item // (job.groups * job.batch) * share
        length = job.queries if job.lengths == 0 else indices_at(job.lengths)[batch]
        key = keys_of(job, batch, group)
        value = floats_at(job.value + 4 * (batch * job.value_batch + group * job.value_head))
        pack(packed_key, size, key, job.key_row, job.keys, job.width, job.scale)
        pack(packed_value, size, value, job.value_row, job.keys, job.value_width, 1.0)
        key_grad = floats_at(job.key_grad + 4 * item * job.keys * job.width)
        value_grad = floats_at(job.value_grad + 4 * item * job.keys * job.value_width)
        for block in range(begin, min(begin + share, blocks_of_queries)):
            first = block * size
            rows = max(min(size, length - first), 0)
            for head in range(group * shared, (group + 1) * shared):
                query = floats_at(
                    job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
                )
                grad = floats_at(
                    job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + first * job.grad_row)
                )
                query_grad = floats_at(
                    job.query_grad
                    + 4
                    * (batch * job.query_grad_batch + head * job.query_grad_head + first * job.query_grad_row)
                )
                blocks, seen = seen_blocks(job, batch, head, block)
                columns = seen * size
                width = job.width
                products(
                    job, rows, query, job.query_row, packed_key, width, blocks, seen, length, tile, stride, True
                )  # fmt: skip
                width = job.value_width
                products(
                    job, rows, grad, job.grad_row, packed_value, width, blocks, seen, length, grads, stride, False
                )  # fmt: skip
                for r in range(rows):
                    row, row_grads = floats_after(tile, r * stride), floats_after(grads, r * stride)
                    at = (batch * job.heads + head) * job.queries + first + r
                    norm = floats_at(job.norm + 8 * at)
                    threshold, tie = floats_at(job.threshold)[at], indices_at(job.tie)[at]
                    weigh_row(job, row, columns, threshold, tie, norm, index, kept)
                    if job.dropout > 0:
                        key_numbers(job, blocks, seen, index)
                        drop(work, index, columns, job.dropout, job.seed, at)
                        for j in range(columns):
                            row_grads[j] *= work[j]
                    score_gradient(job.rule, row, row_grads, columns)
                    for j in range(columns):
                        row_grads[j] *= job.scale
                        if job.dropout > 0:
                            row[j] *= work[j]
                    if norm[1] != norm[1]:
                        for j in range(columns):
                            row[j] = row_grads[j] = NAN
                for c in range(seen):
                    start = indices_at(blocks)[c] * size
                    keys = min(size, length - start)
                    weights, slopes = floats_after(tile, c * size), floats_after(grads, c * size)
                    multiply(
                        query_grad, job.query_grad_row, slopes, stride, 1, floats_after(key, start * job.key_row),
                        job.key_row, keys, rows, job.width, c > 0,
                    )  # fmt: skip
                    multiply(
                        floats_after(key_grad, start * job.width), job.width, slopes, 1, stride, query,
                        job.query_row, rows, keys, job.width, True,
                    )  # fmt: skip
                    multiply(
                        floats_after(value_grad, start * job.value_width), job.value_width, weights, 1, stride, grad,
                        job.grad_row, rows, keys, job.value_width, True,
                    )  # fmt: skip
                for r in range(rows if seen > 0 else 0, min(size, job.queries - first)):
                    for d in range(job.width):
                        query_grad[r * job.query_grad_row + d] = ZERO
        item = next_item(jobs)
