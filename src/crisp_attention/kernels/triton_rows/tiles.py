"""What every kernel of this package computes the same way: one tile of scores, and what is kept of it.

A row's threshold is compared with scores that are computed again, and must come out with the same
bits: every kernel takes the product of the same (BLOCK_M, BLOCK_N) tiles the same way round.
"""

import torch
import triton
import triton.language as tl

# of products in float32: three on tensor cores, which lose hardly more than one; AMD's compiler does not have them
PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")


@triton.jit
def place(row_tiles, heads):
    """The program's tile, example and head."""
    program = tl.program_id(0)
    at = program // row_tiles
    return program % row_tiles, (at // heads).to(tl.int64), (at % heads).to(tl.int64)


@triton.jit
def load_rows(states, stride, first, length, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first … first + ROWS of (length, width), zeros beyond, (ROWS, WIDTH)."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row[:, None] < length) & (column[None, :] < width)
    return tl.load(states + row[:, None].to(tl.int64) * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def store_rows(states, stride, values, first, length, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The inverse of `load_rows`."""
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row[:, None] < length) & (column[None, :] < width)
    at = states + row[:, None].to(tl.int64) * stride + column[None, :]
    tl.store(at, values.to(states.dtype.element_ty), mask=inside)


@triton.jit
def score_tile(
    q,
    k,
    i,
    j,
    queries,
    keys,
    scale,
    valid,
    valid_row,
    valid_column,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Scores in float32, and which of them are of valid pairs, both (BLOCK_M, BLOCK_N)."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    seen = (i[:, None] < queries) & (j[None, :] < keys)
    if CAUSAL:
        seen = seen & (j[None, :] <= i[:, None])
    if MASKED:
        at = valid + i[:, None].to(tl.int64) * valid_row + j[None, :].to(tl.int64) * valid_column
        seen = seen & (tl.load(at, mask=seen, other=0) != 0)
    return scores, seen


@triton.jit
def kept_of(scores, seen, j, cut, last):
    """Above the row's threshold, or at it and not after its last tied key; NaN is kept."""
    below = (scores < cut[:, None]) | ((scores == cut[:, None]) & (j[None, :] > last[:, None]))
    return seen & (below == 0)


@triton.jit
def dropped(weights, seed, at, i, j, rate, scale):
    """Dropout by a counter: what stays of `weights` is the same in every kernel."""
    row = i[:, None] + tl.zeros_like(weights).to(tl.int32)
    column = j[None, :] + tl.zeros_like(weights).to(tl.int32)
    bits, _, _, _ = tl.philox(seed, column, row, tl.full(weights.shape, 0, tl.int32) + at, row * 0)
    drawn = (bits >> 8).to(tl.float32) * (1.0 / 16777216.0)
    return tl.where(drawn >= rate, weights * scale, 0.0)


@triton.jit
def keys_seen(tile, keys, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr):
    """Where the keys end that a tile of queries can see."""
    if CAUSAL:
        return tl.minimum(keys, (tile + 1) * BLOCK_M)
    return keys
