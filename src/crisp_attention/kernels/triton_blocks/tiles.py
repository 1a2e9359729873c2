"""What every pass over blocks computes the same way: where a tile's tokens are, its scores, and which pairs count.

Positions are those in an example's span of real tokens, from 0; blocks of keys are counted from its first.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def span_of(spans, b, keys, SPANS: tl.constexpr):
    """The first real token of an example, and how many there are."""
    start, length = 0, keys
    if SPANS:
        start = tl.load(spans + 2 * b)
        length = tl.maximum(tl.load(spans + 2 * b + 1) - start, 0)
    return start, length


@triton.jit
def queries_of(start, length, first, queries):
    """From which number on queries are real tokens, the position of which is the number less that; and until which."""
    least = start - first
    if queries == 1:  # where a cache ends before the one that is decoding, its own key is the last one there
        least = tl.maximum(least, 1 - length)
    return least, tl.minimum(queries, least + length)


@triton.jit
def load_tile(states, stride, first, least, end, ROWS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """Rows first … first + ROWS, zeros but for those from `least` to `end`; EVEN: all are."""
    row = first + tl.arange(0, ROWS)
    at = states + row[:, None].to(tl.int64) * stride + tl.arange(0, WIDTH)[None, :]
    if EVEN:
        return tl.load(at)
    return tl.load(at, mask=((row >= least) & (row < end))[:, None], other=0.0)


@triton.jit
def store_tile(states, stride, values, first, end, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first … first + ROWS as far as they come before `end`."""
    row = first + tl.arange(0, ROWS)
    at = states + row[:, None].to(tl.int64) * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(at, values.to(states.dtype.element_ty), mask=(row < end)[:, None])


@triton.jit
def seen_of(
    r, c, length, reach, dilation, local, anchors, CAUSAL: tl.constexpr, BAND: tl.constexpr
):  # fmt: skip
    """Which pairs count of a tile of queries at positions `r` and one of keys at `c`, as far as positions say."""
    seen = ((r >= 0) & (r < length))[:, None] & (c < length)[None, :]
    if CAUSAL:
        seen = seen & (c[None, :] <= r[:, None])
    if BAND:
        distance = tl.abs(c[None, :] - r[:, None])
        near = (distance <= reach) & (distance % dilation == 0) | (distance < local)
        seen = seen & (near | (c < anchors)[None, :] | (r < anchors)[:, None])
    return seen


@triton.jit
def keys_of_band(r, length, wide, anchors, CAUSAL: tl.constexpr, SIZE: tl.constexpr):
    """For queries at r … r + SIZE - 1: how many of the first blocks of keys they see, from which on others, how many.

    `wide` is the largest distance; the number is that of all blocks.
    """
    low = tl.where(r < anchors, 0, tl.maximum(r - wide, 0))
    high = tl.where(r < anchors, length, tl.minimum(r + SIZE + wide, length))
    if CAUSAL:
        high = tl.minimum(high, r + SIZE)
    low = low // SIZE
    few = tl.minimum((tl.minimum(anchors, length) + SIZE - 1) // SIZE, low)
    return few, low, few + tl.maximum((high + SIZE - 1) // SIZE - low, 0)


@triton.jit
def queries_of_band(c, length, offset, queries, wide, anchors, CAUSAL: tl.constexpr, SIZE: tl.constexpr):
    """For keys at c … c + SIZE - 1: how many tiles of queries that see every key and from where, others, how many.

    A query at position r is number r + `offset`; the last number is that of all tiles.
    """
    low = tl.where(c < anchors, 0, tl.maximum(c - wide, 0))
    high = tl.where(c < anchors, length, tl.minimum(c + SIZE + wide, length))
    if CAUSAL:
        low = tl.maximum(low, c)
    low = tl.maximum(low + offset, 0) // SIZE
    high = (tl.minimum(high + offset, queries) + SIZE - 1) // SIZE
    begin = tl.maximum(offset, 0) // SIZE
    end = (tl.maximum(tl.minimum(tl.minimum(anchors, length) + offset, queries), 0) + SIZE - 1) // SIZE
    few = tl.maximum(tl.minimum(end, low) - begin, 0)
    if CAUSAL:  # anchors see what is before them
        few = 0
    return few, begin, low, few + tl.maximum(high - low, 0)
