"""The scores of a tile of rows, as every rule sees them: what may not be attended, and nothing else, is -inf."""

import numpy as np

from crisp_attention.kernels.cpu.capping import cap
from crisp_attention.kernels.cpu.dots import row_dots
from crisp_attention.kernels.cpu.native import bytes_at, compiled, floats_after, floats_at
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import STRIP
from crisp_attention.kernels.cpu.selection import INFINITY, floored, padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of


@compiled
def bias_of(job, batch, head, row):
    """Where the bias of a query begins."""
    at = batch * job.bias_batch + head * job.bias_head + row * job.bias_row
    return floats_at(job.bias + 4 * (at + bounds(job, batch)[0]))


@compiled
def pack_head(job, batch, group, packed):
    """Lay out the keys of a head for its tiles, if there is room for all of them."""
    if job.whole and not job.unpacked:
        begin, end = bounds(job, batch)
        pack(packed, STRIP, keys_of(job, batch, group), job.key_row, end - begin, job.width, job.scale)


@compiled
def score_tile(job, batch, head, first, rows, packed, scores):
    """Scores of `rows` queries from `first`, each row padded to whole vectors with -inf."""
    group = head // (job.heads // job.groups)
    begin, end = bounds(job, batch)
    stride = padded(job.keys)
    query = floats_at(
        job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
    )
    columns = padded(end_of(job, first + rows - 1, begin, end))
    if job.unpacked:
        keys = keys_of(job, batch, group)
        for r in range(rows):
            row, own = floats_after(scores, r * stride), floats_after(query, r * job.query_row)
            row_dots(row, own, keys, job.key_row, min(columns, end - begin), job.width, np.float32(job.scale))
            if job.softcap > 0:
                cap(row, np.float32(job.softcap), columns)
    for start in range(0, 0 if job.unpacked else columns, STRIP):
        strip = packed
        if job.whole:
            strip = floats_after(packed, start * job.width)
        else:
            keys = floats_after(keys_of(job, batch, group), start * job.key_row)
            pack(strip, STRIP, keys, job.key_row, min(STRIP, end - begin - start), job.width, job.scale)
        sums, width = floats_after(scores, start), min(STRIP, columns - start)
        multiply(sums, stride, query, job.query_row, 1, strip, STRIP, job.width, rows, width, False)
        for r in range(rows):  # while they are in the first cache
            line = floats_after(sums, r * stride)
            if job.softcap > 0:
                cap(line, np.float32(job.softcap), width)
            if not job.bias and not job.valid:
                for j in range(width):
                    line[j] = floored(line[j])
    for r in range(rows):
        row, i = floats_after(scores, r * stride), first + r
        n = end_of(job, i, begin, end)
        if job.bias:
            add = bias_of(job, batch, head, i)
            for j in range(n):
                row[j] += add[j]
        if job.valid:
            at = batch * job.valid_batch + head * job.valid_head + i * job.valid_row + begin
            may = bytes_at(job.valid + at)
            for j in range(n):
                row[j] = floored(row[j]) if may[j] else -INFINITY
        elif job.bias or job.unpacked:
            for j in range(n):
                row[j] = floored(row[j])
        for j in range(n, padded(n)):
            row[j] = -INFINITY
