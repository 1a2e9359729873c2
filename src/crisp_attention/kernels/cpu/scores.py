"""The scores of a tile of rows, as every rule sees them: what may not be attended is -inf."""

import numpy as np

from crisp_attention.kernels.cpu.native import bytes_at, compiled, floats_after, floats_at, rows_times_rows
from crisp_attention.kernels.cpu.selection import INFINITY

LANES = 16


@compiled
def padded(count):
    """The next multiple of a vector's lanes."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def seen_by(job, row):
    """How many keys, from the first, a query may see at most."""
    return min(job.keys, row + 1) if job.causal else job.keys


@compiled
def score_tile(job, batch, head, first, rows, scores):
    """Scores of `rows` queries from `first`, each row padded to whole vectors with -inf."""
    group = head // (job.heads // job.groups)
    stride = padded(job.keys)
    query = floats_at(
        job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
    )
    key = floats_at(job.key + 4 * (batch * job.key_batch + group * job.key_head))
    columns = seen_by(job, first + rows - 1)
    rows_times_rows(
        job.sgemm,
        rows,
        columns,
        job.width,
        np.float32(job.scale),
        query,
        job.query_row,
        key,
        job.key_row,
        np.float32(0),
        scores,
        stride,
    )
    for r in range(rows):
        row, i = floats_after(scores, r * stride), first + r
        n = seen_by(job, i)
        if job.bias:
            add = floats_at(job.bias + 4 * (batch * job.bias_batch + head * job.bias_head + i * job.bias_row))
            for j in range(n):
                row[j] += add[j]
        if job.valid:
            may = bytes_at(job.valid + batch * job.valid_batch + head * job.valid_head + i * job.valid_row)
            for j in range(n):
                row[j] = row[j] if may[j] else -INFINITY
        for j in range(n, padded(n)):
            row[j] = -INFINITY
