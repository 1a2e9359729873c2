"""Keys that are drawn: the numbers of `methods.hashing.drawn` for a row, and the scores of the keys they choose."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu import selection
from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.native import bytes_at, compiled, floats_at, indices_at
from crisp_attention.kernels.cpu.rows import gather_dot
from crisp_attention.kernels.cpu.selection import EVERYWHERE, INFINITY, floored, padded
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INDICES,
    INT,
    INTS,
    LANES,
    POINTER,
    compact,
    load,
    splat,
    store,
)
from crisp_attention.methods.hashing import MASK32, MULTIPLIER

# draws are whole numbers below this
END = np.float32(2**24)
NAN, ZERO = np.float32(np.nan), np.float32(0)


@compiled
def mix(value):
    """`methods.hashing.mix` of one number."""
    for _ in range(2):
        value = ((value ^ (value >> 16)) * MULTIPLIER) & MASK32
    return value ^ (value >> 16)


@intrinsic
def draws(typing, out, position, start, count):
    """out[t] = `methods.hashing.drawn` of each position, given the hash `start` of all before; whole vectors."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        out, position, start, count = arguments
        start = splat(builder, builder.trunc(start, INT))
        sixteen, eight = (ir.Constant(INTS, [bits] * LANES) for bits in (16, 8))
        factor = ir.Constant(INTS, [MULTIPLIER] * LANES)
        with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
            place = builder.bitcast(
                load(builder, builder.bitcast(builder.gep(position, [t]), out.type)), INTS
            )
            x = builder.add(place, start)
            # of a sum of 33 bits, what its highest is shifted to
            carry = builder.zext(builder.icmp_unsigned("<", x, start), INTS)
            x = builder.xor(x, builder.shl(carry, sixteen))
            for _ in range(2):
                x = builder.mul(builder.xor(x, builder.lshr(x, sixteen)), factor)
            x = builder.lshr(builder.xor(x, builder.lshr(x, sixteen)), eight)
            store(builder, builder.sitofp(x, FLOATS), builder.gep(out, [t]))
        return context.get_dummy_value()

    return types.void(POINTER, INDICES, types.int64, types.int64), code


@compiled
def draw(job, batch, head, i, n, row, position):
    """A number for every key that a query may see, -inf for the others of the first n; returns how many it sees."""
    columns = padded(n)
    own, last = max(job.keys - job.queries + i, 0), n - 1
    seen = np.int32(n)
    may = bytes_at(job.valid + batch * job.valid_batch + head * job.valid_head + i * job.valid_row)
    if job.valid:
        seen, last = np.int32(0), 0
        for j in range(n):
            if may[j]:
                seen, last = np.int32(seen + 1), j
            position[j] = seen
    else:
        for j in range(n):
            position[j] = np.int32(j + 1)
    for j in range(n, columns):
        position[j] = np.int32(0)
    at = (batch * job.heads + head) * job.queries + i
    seed = np.int64(indices_at(job.own)[at]) & MASK32
    draws(row, position, mix(seed + np.int64(position[min(own, last)])), columns)
    if job.valid:
        for j in range(n):
            row[j] = row[j] if may[j] else -INFINITY
    for j in range(n, columns):
        row[j] = -INFINITY
    return np.int64(seen)


@compiled
def largest_draws(row, n, seen, k):
    """Threshold and tie of the k largest of `seen` draws, which stand among -inf for the others of the first n."""
    if k <= 0:
        return selection.INFINITY, EVERYWHERE
    if k >= seen:
        return ZERO, EVERYWHERE
    pace = END / np.float32(seen)
    guess = END - (np.float32(k) - selection.HALF) * pace
    return selection.kth_largest(row, n, seen, k, ZERO, END, guess, pace)


@compiled
def choose_drawn(job, batch, head, i, row, n, index, kept, work, norm):
    """As `limits.choose`, by numbers drawn into `row`; of the scores, only those that are kept are computed."""
    seen = draw(job, batch, head, i, n, row, index)
    threshold, tie = largest_draws(row, n, seen, np.int64(indices_at(job.counts)[seen]))
    count = drawn_scores(job, batch, head, i, row, n, threshold, tie, index, kept)
    high, broken = -INFINITY, 0
    for t in range(count):
        broken += kept[t] != kept[t]
        high = max(high, kept[t])
    norm[0], norm[1] = high, ZERO
    if count > 0:
        norm[1] = NAN if selection.spoiled(high, broken) else exponentials(work, kept, high, count)
    return count, threshold, tie


@compiled
def drawn_scores(job, batch, head, i, row, n, threshold, tie, index, kept):
    """Write which keys the numbers in `row` choose, and their scores; returns how many."""
    count = compact(row, padded(n), threshold, tie, index, kept)
    group = head // (job.heads // job.groups)
    query = floats_at(job.query + 4 * (batch * job.query_batch + head * job.query_head + i * job.query_row))
    key = floats_at(job.key + 4 * (batch * job.key_batch + group * job.key_head))
    gather_dot(kept, query, key, job.key_row, index, count, job.width)
    scale = np.float32(job.scale)
    add = floats_at(job.bias + 4 * (batch * job.bias_batch + head * job.bias_head + i * job.bias_row))
    for t in range(count):
        score = kept[t] * scale
        if job.bias:
            score += add[index[t]]
        kept[t] = floored(score)
    return count
