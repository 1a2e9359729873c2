"""The scores of a tile of rows, as every rule sees them: what may not be attended, and nothing else, is -inf."""

import numpy as np

from crisp_attention.kernels.cpu.capping import cap
from crisp_attention.kernels.cpu.dots import row_dots
from crisp_attention.kernels.cpu.native import bytes_at, compiled, floats_after, floats_at, indices_at
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import STRIP
from crisp_attention.kernels.cpu.selection import INFINITY, floored, padded


@compiled
def span_of(job, batch):
    """The first key of an example that may be seen, from which its keys are counted, and how many there are."""
    if job.spans == 0:
        return np.int64(0), job.keys
    bounds = indices_at(job.spans + 8 * batch)
    first = min(max(np.int64(bounds[0]), 0), job.keys)
    return first, max(min(np.int64(bounds[1]), job.keys) - first, 0)


@compiled
def seen_by(job, batch, row):
    """How many keys, from the first of the example's span, a query may see at most."""
    first, count = span_of(job, batch)
    return max(min(count, row + 1 + job.first_query - first), 0) if job.causal else count


@compiled
def all_keys_of(job, batch, group):
    """Where the keys of a head begin."""
    return floats_at(job.key + 4 * (batch * job.key_batch + group * job.key_head))


@compiled
def keys_of(job, batch, group):
    """Where those of a head's keys begin that are in the example's span."""
    return floats_after(all_keys_of(job, batch, group), span_of(job, batch)[0] * job.key_row)


@compiled
def values_of(job, batch, group):
    """Where the values of a head begin that are in the example's span."""
    first, _ = span_of(job, batch)
    return floats_at(
        job.value + 4 * (batch * job.value_batch + group * job.value_head + first * job.value_row)
    )


@compiled
def bias_of(job, batch, head, row):
    """Where the bias of a query begins."""
    at = batch * job.bias_batch + head * job.bias_head + row * job.bias_row
    return floats_at(job.bias + 4 * (at + span_of(job, batch)[0]))


@compiled
def packed_size(job, width):
    """Numbers in keys, or values, that are laid out together."""
    return ((job.keys if job.whole else STRIP) + STRIP - 1) // STRIP * STRIP * width


@compiled
def pack_head(job, batch, group, packed):
    """Lay out the keys of a head for its tiles, if there is room for all of them."""
    if job.whole and not job.unpacked:
        count = span_of(job, batch)[1]
        pack(packed, STRIP, keys_of(job, batch, group), job.key_row, count, job.width, job.scale)


@compiled
def score_tile(job, batch, head, first, rows, packed, scores):
    """Scores of `rows` queries from `first`, each row padded to whole vectors with -inf."""
    group = head // (job.heads // job.groups)
    begin, count = span_of(job, batch)
    stride = padded(job.keys)
    query = floats_at(
        job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
    )
    columns = padded(seen_by(job, batch, first + rows - 1))
    if job.unpacked:
        keys = keys_of(job, batch, group)
        for r in range(rows):
            row, own = floats_after(scores, r * stride), floats_after(query, r * job.query_row)
            row_dots(row, own, keys, job.key_row, min(columns, count), job.width, np.float32(job.scale))
            if job.softcap > 0:
                cap(row, np.float32(job.softcap), columns)
    for start in range(0, 0 if job.unpacked else columns, STRIP):
        strip = packed
        if job.whole:
            strip = floats_after(packed, start * job.width)
        else:
            keys = floats_after(keys_of(job, batch, group), start * job.key_row)
            pack(strip, STRIP, keys, job.key_row, min(STRIP, count - start), job.width, job.scale)
        sums, width = floats_after(scores, start), min(STRIP, columns - start)
        multiply(sums, stride, query, job.query_row, 1, strip, STRIP, job.width, rows, width, False)
        if job.softcap > 0:
            for r in range(rows):
                cap(floats_after(sums, r * stride), np.float32(job.softcap), width)
    for r in range(rows):
        row, i = floats_after(scores, r * stride), first + r
        n = seen_by(job, batch, i)
        if job.bias:
            add = bias_of(job, batch, head, i)
            for j in range(n):
                row[j] += add[j]
        if job.valid:
            at = batch * job.valid_batch + head * job.valid_head + i * job.valid_row + begin
            may = bytes_at(job.valid + at)
            for j in range(n):
                row[j] = floored(row[j]) if may[j] else -INFINITY
        else:
            for j in range(n):
                row[j] = floored(row[j])
        for j in range(n, padded(n)):
            row[j] = -INFINITY
