"""The keys that a query sees by numbers of tokens, listed row by row, and their scores."""

import numpy as np

from crisp_attention.kernels.cpu.block_tiles import ONE, ZERO
from crisp_attention.kernels.cpu.drawn import draws, largest_draws, mix
from crisp_attention.kernels.cpu.native import compiled, floats_after, floats_at, indices_after, indices_at
from crisp_attention.kernels.cpu.plan import CODES, KEYS, MEMBERS, POINTS
from crisp_attention.kernels.cpu.rows import gather_dot
from crisp_attention.kernels.cpu.selection import EVERYWHERE, HALF, INFINITY, floored, padded
from crisp_attention.kernels.cpu.spans import end_of, own_of
from crisp_attention.kernels.cpu.vectors import compact
from crisp_attention.methods.hashing import MASK32


@compiled
def has_ends(job, begin, end):
    """Whether the last tokens of a row see everything: some queries stand before the end of theirs, as in encoders."""
    if job.last_tokens > 0:
        for i in range(job.queries):
            if own_of(job, i, begin, end) + 1 < end_of(job, i, begin, end):
                return True
    return False


@compiled
def _draw(job, head, mark, count, first, position, row):
    """row[j] = the draw of number first + j for j < count, given the mark of the query; -inf up to whole vectors."""
    columns = padded(count)
    for j in range(columns):
        position[j] = np.int32(first + j)
    seed = np.int64(indices_at(job.head_seeds)[head]) & MASK32
    draws(row, position, mix(seed + mark), columns)
    for j in range(count, columns):
        row[j] = -INFINITY


@compiled
def _draw_keys(job, head, n, own, position, row):
    """row[j] = 1 for the keys that a row draws, and its own, else 0."""
    _draw(job, head, own + 1, n, 1, position, row)
    if own >= 0:
        row[own] = -INFINITY
    forced = np.int64(own >= 0)
    room = np.int64(indices_at(job.shares)[n]) - forced
    threshold, tie = largest_draws(row, n, n - forced, room)
    for j in range(n):
        row[j] = ONE if (row[j] > threshold) | ((row[j] == threshold) & (j <= tie)) else ZERO
    if own >= 0:
        row[own] = ONE


@compiled
def _draw_blocks(job, head, n, own, position, work, row):
    """row[j] = 1 for the keys of the blocks that a row draws."""
    size = job.drawn_size
    blocks = (n + size - 1) // size
    _draw(job, head, own // size, blocks, 0, position, work)
    threshold, tie = largest_draws(work, blocks, blocks, min(job.drawn_blocks, blocks))
    for b in range(blocks):
        if work[b] > threshold or (work[b] == threshold and b <= tie):
            for j in range(b * size, min(b * size + size, n)):
                row[j] = ONE


@compiled
def _meet(job, at, keys, n, row):
    """row[j] = 1 for the keys that row number `at` meets by its traits; theirs begin at `keys`."""
    columns = job.columns_of_traits
    numbers = indices_after(indices_at(job.query_traits), at * columns)
    for t in range(columns):
        line = indices_after(indices_at(job.key_traits), keys + t * job.keys)
        own = numbers[t]
        if job.traits == CODES:
            for j in range(n):
                row[j] = ONE if (line[j] == own) | (line[j] < 0) | (own < 0) else row[j]
        else:
            for j in range(n):
                row[j] = ONE if (line[j] & own) != 0 else row[j]


@compiled
def _approach(job, at, keys, n, work, row):
    """row[j] = 1 for the keys whose place is near that of row number `at`, or NaN."""
    columns = job.columns_of_traits
    place = floats_after(floats_at(job.query_traits), at * columns)
    for j in range(n):
        work[j] = ZERO
    for t in range(columns):
        line = floats_after(floats_at(job.key_traits), keys + t * job.keys)
        own = place[t]
        for j in range(n):
            away = own - line[j]
            work[j] += away * away
    limit = np.float32(job.distance)
    for j in range(n):
        row[j] = row[j] if work[j] >= limit else ONE


@compiled
def _fill(row, first, end):
    for j in range(first, end):
        row[j] = ONE


@compiled
def list_keys(job, batch, head, i, begin, end, ends, seen, row, work):
    """Write which keys query i sees, in order and from the first of its example; returns how many.

    `ends` as `has_ends` says; `seen`, `row` and `work` have a slot for each key and 16 more.
    """
    n, own = end_of(job, i, begin, end), own_of(job, i, begin, end)
    columns = padded(n)
    for j in range(columns):
        row[j] = ZERO
    behind = n - job.last_tokens if ends else n
    if 0 <= own < job.global_tokens or own >= behind:
        _fill(row, 0, n)
    else:
        if job.drawn == KEYS:
            _draw_keys(job, head, n, own, seen, row)
            for j in range(n, columns):
                row[j] = ZERO
        elif job.drawn:
            _draw_blocks(job, head, n, own, seen, work, row)
        of_head = batch * job.heads + head
        at, keys = of_head * job.queries + i, of_head * job.columns_of_traits * job.keys + begin
        if job.traits == CODES or job.traits == MEMBERS:
            _meet(job, at, keys, n, row)
        elif job.traits == POINTS:
            _approach(job, at, keys, n, work, row)
        _fill(row, max(own - job.reach, 0), min(own + job.reach + 1, n))
        _fill(row, 0, min(job.global_tokens, n))
        _fill(row, max(behind, 0), n)
    return compact(row, columns, HALF, EVERYWHERE, seen, work)


@compiled
def listed_scores(job, query, key, seen, count, row):
    """Scores of the listed keys, side by side, -inf up to whole vectors."""
    gather_dot(row, query, key, job.key_row, seen, count, job.width)
    scale = np.float32(job.scale)
    for t in range(count):
        row[t] = floored(row[t] * scale)
    for t in range(count, padded(count)):
        row[t] = -INFINITY
