"""Long rows: what is kept of a tile's rows is listed in their place, and multiplied chunk by chunk of the keys.

Row by row, every key that is kept would come from beyond a core's caches; the keys of a chunk come from there once for
all rows of a tile. A row's lists are its indices, weights, and in the backward pass slopes, each with room for `part`.
"""

from crisp_attention.kernels.cpu.counts import place_of
from crisp_attention.kernels.cpu.native import compiled, floats_at, indices_at
from crisp_attention.kernels.cpu.plan import LANES
from crisp_attention.kernels.cpu.rows import clear, gather_dot, gather_sum, scatter_add
from crisp_attention.kernels.cpu.selection import padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.weights import score_gradient


@compiled
def part_of(job, lists):
    """How much may be kept of a row for so many lists to have room in its place; 0 where rows are not long."""
    return padded(job.keys) // lists // LANES * LANES if job.chunk_keys else 0


@compiled
def put(lists, part, index, weights, count):
    """List what is kept of a row at the address of its scores."""
    own_index, own_weights = indices_at(lists), floats_at(lists + 4 * part)
    for t in range(count):
        own_index[t], own_weights[t] = index[t], weights[t]


@compiled
def sum_chunks(job, batch, head, first, rows, lists, part, counts, done):
    """The outputs of a tile's rows from their lists at this address; `counts` are 0 for rows that have none."""
    value = values_of(job, batch, head // (job.heads // job.groups))
    begin, end = bounds(job, batch)
    out_at = job.out + 4 * (batch * job.out_batch + head * job.out_head + first * job.out_row)
    stride = 4 * padded(job.keys)
    for r in range(rows):
        done[r] = 0
        if counts[r] > 0:
            clear(floats_at(out_at + 4 * r * job.out_row), job.value_width)
    for start in range(0, end_of(job, first + rows - 1, begin, end), job.chunk_keys):
        for r in range(rows):
            at, index = done[r], indices_at(lists + r * stride)
            stop = place_of(index, at, counts[r], start + job.chunk_keys)
            if stop > at:
                index = indices_at(lists + r * stride + 4 * at)
                weights = floats_at(lists + r * stride + 4 * (part + at))
                out = floats_at(out_at + 4 * r * job.out_row)
                gather_sum(out, value, job.value_row, index, weights, stop - at, job.value_width, True)
                done[r] = stop


@compiled
def differentiate_chunks(job, batch, head, first, rows, lists, part, counts, done, key_grad, value_grad):
    """The gradients of a tile's queries, and what it adds to those of keys and values, from the lists of its rows."""
    group = head // (job.heads // job.groups)
    key, value = keys_of(job, batch, group), values_of(job, batch, group)
    begin, end = bounds(job, batch)
    keys, stride = end_of(job, first + rows - 1, begin, end), 4 * padded(job.keys)
    query_at = job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
    grad_at = job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + first * job.grad_row)
    own_at = job.query_grad + 4 * (
        batch * job.query_grad_batch + head * job.query_grad_head + first * job.query_grad_row
    )
    for r in range(rows):
        done[r] = 0
    for start in range(0, keys, job.chunk_keys):
        for r in range(rows):
            at, row = done[r], lists + r * stride
            stop = place_of(indices_at(row), at, counts[r], start + job.chunk_keys)
            if stop > at:
                index, weights = indices_at(row + 4 * at), floats_at(row + 4 * (part + at))
                slopes, grad = floats_at(row + 4 * (2 * part + at)), floats_at(grad_at + 4 * r * job.grad_row)
                gather_dot(slopes, grad, value, job.value_row, index, stop - at, job.value_width)
                scatter_add(value_grad, job.value_width, index, weights, stop - at, grad, job.value_width)
                done[r] = stop
    for r in range(rows):
        done[r], row = 0, lists + r * stride
        if counts[r] > 0:
            slopes = floats_at(row + 8 * part)
            score_gradient(job.rule, floats_at(row + 4 * part), slopes, counts[r])
            for t in range(counts[r]):
                slopes[t] *= job.scale
            clear(floats_at(own_at + 4 * r * job.query_grad_row), job.width)
    for start in range(0, keys, job.chunk_keys):
        for r in range(rows):
            at, row = done[r], lists + r * stride
            stop = place_of(indices_at(row), at, counts[r], start + job.chunk_keys)
            if stop > at:
                index, slopes = indices_at(row + 4 * at), floats_at(row + 4 * (2 * part + at))
                own = floats_at(own_at + 4 * r * job.query_grad_row)
                gather_sum(own, key, job.key_row, index, slopes, stop - at, job.width, True)
                query = floats_at(query_at + 4 * r * job.query_row)
                scatter_add(key_grad, job.width, index, slopes, stop - at, query, job.width)
                done[r] = stop
