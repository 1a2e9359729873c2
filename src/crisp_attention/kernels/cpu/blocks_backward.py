"""The backward pass of block layouts: the tiles computed again, and four products over the strips they see."""

from numba import carray

from crisp_attention.kernels.cpu.block_rows import slopes_of
from crisp_attention.kernels.cpu.block_tiles import clear, key_numbers, products, rows_of, show, strips_of
from crisp_attention.kernels.cpu.job import JOB
from crisp_attention.kernels.cpu.native import (
    entry,
    floats_after,
    floats_at,
    indices_after,
    indices_at,
    next_item,
    next_thread,
)
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, own_of, values_of
from crisp_attention.kernels.cpu.weights import drop


@entry(JOB)
def backward(jobs):
    """Take groups of keys until none is left."""
    job = carray(jobs, 1)[0]
    size = job.block_size
    room = job.most_blocks * size + LANES
    scratch = job.scratch + 4 * job.scratch_size * next_thread(jobs)
    index, kept, work = indices_at(scratch), floats_at(scratch + 4 * room), floats_at(scratch + 8 * room)
    strips = indices_at(scratch + 12 * room)
    whole, tile = indices_after(strips, job.most_blocks), floats_at(scratch + 16 * room)
    grads = floats_after(tile, size * size * job.most_blocks)
    packed_key = floats_after(grads, size * size * job.most_blocks)
    packed_value = floats_after(packed_key, (job.keys + size - 1) // size * size * job.width)
    shared = job.heads // job.groups
    tiles = (job.queries + size - 1) // size
    share = (tiles + job.chunks - 1) // job.chunks
    item = next_item(jobs)
    while item < job.chunks * job.batch * job.groups:
        group, batch = item % job.groups, item // job.groups % job.batch
        chunk = item // (job.groups * job.batch) * share
        begin, end = bounds(job, batch)
        key = keys_of(job, batch, group)
        value = values_of(job, batch, group)
        pack(packed_key, size, key, job.key_row, end - begin, job.width, job.scale)
        pack(packed_value, size, value, job.value_row, end - begin, job.value_width, 1.0)
        key_grad = floats_at(job.key_grad + 4 * (item * job.keys + begin) * job.width)
        value_grad = floats_at(job.value_grad + 4 * (item * job.keys + begin) * job.value_width)
        for block in range(chunk, min(chunk + share, tiles)):
            first, rows = rows_of(job, block, begin, end)
            for head in range(group * shared, (group + 1) * shared):
                query = floats_at(
                    job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
                )
                grad = floats_at(
                    job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + first * job.grad_row)
                )
                base = floats_at(
                    job.query_grad + 4 * (batch * job.query_grad_batch + head * job.query_grad_head)
                )
                query_grad = floats_after(base, first * job.query_grad_row)
                seen = strips_of(job, batch, head, block, first, rows, begin, end, strips, whole)
                columns, width, there = seen * size, job.width, end - begin
                products(
                    job, rows, query, job.query_row, packed_key, width, strips, seen, there, tile, columns
                )
                width = job.value_width
                products(
                    job, rows, grad, job.grad_row, packed_value, width, strips, seen, there, grads, columns
                )
                for r in range(rows if seen > 0 else 0):
                    row, row_grads = floats_after(tile, r * columns), floats_after(grads, r * columns)
                    own, keys = own_of(job, first + r, begin, end), end_of(job, first + r, begin, end)
                    show(job, row, own, keys, strips, whole, seen)
                    at = (batch * job.heads + head) * job.queries + first + r
                    if job.dropout > 0:
                        key_numbers(job, begin, strips, seen, index)
                        drop(work, index, columns, job.dropout, job.seed, at)
                    slopes_of(job, row, row_grads, columns, at, index, kept, work)
                for c in range(seen):
                    start = strips[c] * size
                    keys = min(size, there - start)
                    weights, slopes = floats_after(tile, c * size), floats_after(grads, c * size)
                    multiply(
                        query_grad, job.query_grad_row, slopes, columns, 1, floats_after(key, start * job.key_row),
                        job.key_row, keys, rows, job.width, c > 0,
                    )  # fmt: skip
                    multiply(
                        floats_after(key_grad, start * job.width), job.width, slopes, 1, columns, query,
                        job.query_row, rows, keys, job.width, True,
                    )  # fmt: skip
                    multiply(
                        floats_after(value_grad, start * job.value_width), job.value_width, weights, 1, columns, grad,
                        job.grad_row, rows, keys, job.value_width, True,
                    )  # fmt: skip
                rows_seen = rows if seen > 0 else 0
                clear(base, job.query_grad_row, job.width, block, size, first, rows_seen, job.queries)
        item = next_item(jobs)
