"""The end of the search for a row's k-th largest score: among a few candidates, without another look at the keys."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_rows.tiles import load_rows, score_tile

CANDIDATES = tl.constexpr(64)  # of a row, at most


@triton.jit
def image(values):
    """Integers in the order of the floats; both zeros are one."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def preimage(images):
    """The float of which an integer is the image."""
    bits = images.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def among_candidates(
    q, key, valid, candidates, i, end, search, wanted, low, high, at_low, at_high,
    k_stride, valid_row, valid_column, queries, keys, width, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The bounds, in images, and the counts at them where a search ends that has at most CANDIDATES scores between.

    One pass over the keys writes these to `candidates`, the row's in (L, CANDIDATES); the halving that follows has them
    in registers.
    """
    lowest, highest = preimage(low), preimage(high - 1)
    row = i * CANDIDATES
    found = tl.zeros([BLOCK_M], tl.int32)
    for first in range(0, end, BLOCK_N):
        k = load_rows(key, k_stride, first, keys, width, BLOCK_N, WIDTH)
        s, seen = score_tile(q, k, i, first + tl.arange(0, BLOCK_N), queries, keys, scale,
                             valid, valid_row, valid_column, MASKED, CAUSAL)  # fmt: skip
        between = seen & search[:, None] & (s >= lowest[:, None]) & (s <= highest[:, None])
        place = found[:, None] + tl.cumsum(between.to(tl.int32), 1) - 1
        tl.store(candidates + (row[:, None] + place), s, mask=between)
        found += tl.sum(between.to(tl.int32), 1)
    tl.debug_barrier()  # what some threads wrote, others read
    column = tl.arange(0, CANDIDATES)
    there = column[None, :] < found[:, None]
    scores = tl.load(candidates + (row[:, None] + column[None, :]), mask=there, other=0.0)
    while tl.max(search.to(tl.int32), 0) > 0:
        middle = low + (high - low) // 2
        up = there & (scores >= preimage(middle)[:, None])
        count = at_high + tl.sum(tl.where(up, 1.0, 0.0), 1)
        enough, short = search & (count >= wanted), search & (count < wanted)
        low, at_low = tl.where(enough, middle, low), tl.where(enough, count, at_low)
        high = tl.where(short, middle, high)
        there = there & ((short[:, None] & up) == 0)
        at_high = tl.where(short, count, at_high)
        search = search & (high - low > 1) & (at_low != wanted)
    return low, high, at_low, at_high
