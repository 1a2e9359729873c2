"""The scores of a tile of rows, as every rule sees them: what may not be attended, and nothing else, is -inf."""

import numpy as np

from crisp_attention.kernels.cpu.capping import cap
from crisp_attention.kernels.cpu.native import bytes_at, compiled, floats_after, floats_at
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import LANES, STRIP
from crisp_attention.kernels.cpu.selection import INFINITY, floored


@compiled
def padded(count):
    """The next multiple of a vector's lanes."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def seen_by(job, row):
    """How many keys, from the first, a query may see at most."""
    return min(job.keys, row + 1) if job.causal else job.keys


@compiled
def keys_of(job, batch, group):
    """Where the keys of a head begin."""
    return floats_at(job.key + 4 * (batch * job.key_batch + group * job.key_head))


@compiled
def bias_of(job, batch, head, row):
    """Where the bias of a query begins."""
    return floats_at(job.bias + 4 * (batch * job.bias_batch + head * job.bias_head + row * job.bias_row))


@compiled
def pack_head(job, batch, group, packed):
    """Lay out the keys of a head for its tiles, if there is room for all of them."""
    if job.whole:
        pack(packed, STRIP, keys_of(job, batch, group), job.key_row, job.keys, job.width, job.scale)


@compiled
def score_tile(job, batch, head, first, rows, packed, scores):
    """Scores of `rows` queries from `first`, each row padded to whole vectors with -inf."""
    group = head // (job.heads // job.groups)
    stride = padded(job.keys)
    query = floats_at(
        job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
    )
    columns = padded(seen_by(job, first + rows - 1))
    for start in range(0, columns, STRIP):
        strip = packed
        if job.whole:
            strip = floats_after(packed, start * job.width)
        else:
            keys = floats_after(keys_of(job, batch, group), start * job.key_row)
            pack(strip, STRIP, keys, job.key_row, min(STRIP, job.keys - start), job.width, job.scale)
        sums, width = floats_after(scores, start), min(STRIP, columns - start)
        multiply(sums, stride, query, job.query_row, 1, strip, STRIP, job.width, rows, width, False)
        if job.softcap > 0:
            for r in range(rows):
                cap(floats_after(sums, r * stride), np.float32(job.softcap), width)
    for r in range(rows):
        row, i = floats_after(scores, r * stride), first + r
        n = seen_by(job, i)
        if job.bias:
            add = bias_of(job, batch, head, i)
            for j in range(n):
                row[j] += add[j]
        if job.valid:
            may = bytes_at(job.valid + batch * job.valid_batch + head * job.valid_head + i * job.valid_row)
            for j in range(n):
                row[j] = floored(row[j]) if may[j] else -INFINITY
        else:
            for j in range(n):
                row[j] = floored(row[j])
        for j in range(n, padded(n)):
            row[j] = -INFINITY
