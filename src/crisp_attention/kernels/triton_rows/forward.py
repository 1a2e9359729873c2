"""Softmax over what the rows keep, and the weighted sum of values."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_rows.tiles import (
    dropped,
    kept_of,
    keys_seen,
    load_rows,
    place,
    score_tile,
    store_rows,
)


@triton.jit
def attend(
    query, key, value, valid, seed, cuts, lasts, tops, output, sums,
    q_strides, k_strides, v_strides, valid_strides, o_strides,
    row_tiles, heads, shared, queries, keys, width, value_width, scale, dropout, dropout_scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Output (B, H, L, Dv), and in `sums` each row's sum of exponentials, the largest being 1, (B, H, L)."""
    tile, b, h = place(row_tiles, heads)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1]
    value += b * v_strides[0] + (h // shared) * v_strides[1]
    output += b * o_strides[0] + h * o_strides[1]
    if MASKED:
        valid += b * valid_strides[0] + h * valid_strides[1]
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    at_row = (b * heads + h) * queries + i
    cut = tl.load(cuts + at_row, mask=i < queries, other=float("inf"))
    last = tl.load(lasts + at_row, mask=i < queries, other=0)
    top = tl.load(tops + at_row, mask=i < queries, other=0.0)
    at = (b * heads + h).to(tl.int32)
    if DROPOUT:
        start = tl.load(seed)
    q = load_rows(query, q_strides[2], tile * BLOCK_M, queries, width, BLOCK_M, WIDTH)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, VALUE_WIDTH], tl.float32)
    for first in range(0, keys_seen(tile, keys, BLOCK_M, CAUSAL), BLOCK_N):
        j = first + columns
        k = load_rows(key, k_strides[2], first, keys, width, BLOCK_N, WIDTH)
        v = load_rows(value, v_strides[2], first, keys, value_width, BLOCK_N, VALUE_WIDTH)
        s, seen = score_tile(q, k, i, j, queries, keys, scale,
                             valid, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
        # the largest score of the row is known: nothing has to be scaled again
        w = tl.where(kept_of(s, seen, j, cut, last), tl.exp(s - top[:, None]), 0.0)
        total += tl.sum(w, 1)
        if DROPOUT:
            w = dropped(w, start, at, i, j, dropout, dropout_scale)
        mixed = tl.dot(w.to(v.dtype), v, mixed, input_precision="ieee")
    empty = (cut == float("inf")) & (total == 0.0)
    mixed = tl.where(empty[:, None], 0.0, mixed / total[:, None])
    tl.store(sums + at_row, total, mask=i < queries)
    store_rows(output, o_strides[2], mixed, tile * BLOCK_M, queries, value_width, BLOCK_M, VALUE_WIDTH)
