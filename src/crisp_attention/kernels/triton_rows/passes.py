"""The forward and the backward pass, tile by tile, once it is known what every row keeps."""

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


@triton.jit
def weight_gradients(
    s,
    seen,
    i,
    j,
    v,
    given,
    cut,
    last,
    top,
    total,
    mean,
    seed,
    at,
    dropout,
    dropout_scale,
    DROPOUT: tl.constexpr,
):
    """Weights after dropout, and the gradient of the scores, both (BLOCK_M, BLOCK_N)."""
    w = tl.where(kept_of(s, seen, j, cut, last), tl.exp(s - top[:, None]) / total[:, None], 0.0)
    slope = tl.dot(given, tl.trans(v), input_precision="ieee")
    stays = w
    if DROPOUT:
        stays = dropped(w, seed, at, i, j, dropout, dropout_scale)
        slope = dropped(slope, seed, at, i, j, dropout, dropout_scale)
    return stays, tl.where(w == 0.0, 0.0, w * (slope - mean[:, None]))


@triton.jit
def query_gradients(
    query, key, value, valid, seed, cuts, lasts, tops, sums, means, given, output, d_query,
    q_strides, k_strides, v_strides, valid_strides, g_strides, o_strides, dq_strides,
    row_tiles, heads, shared, queries, keys, width, value_width, scale, dropout, dropout_scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries; and in `means` (B, H, L) the mean of the weights' gradients in each row.

    Each program has one tile of queries and goes through the keys.
    """
    tile, b, h = place(row_tiles, heads)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1]
    value += b * v_strides[0] + (h // shared) * v_strides[1]
    given += b * g_strides[0] + h * g_strides[1]
    output += b * o_strides[0] + h * o_strides[1]
    d_query += b * dq_strides[0] + h * dq_strides[1]
    if MASKED:
        valid += b * valid_strides[0] + h * valid_strides[1]
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    at_row = (b * heads + h) * queries + i
    cut = tl.load(cuts + at_row, mask=i < queries, other=float("inf"))
    last = tl.load(lasts + at_row, mask=i < queries, other=0)
    top = tl.load(tops + at_row, mask=i < queries, other=0.0)
    total = tl.load(sums + at_row, mask=i < queries, other=1.0)
    at = (b * heads + h).to(tl.int32)
    start = 0
    if DROPOUT:
        start = tl.load(seed)
    q = load_rows(query, q_strides[2], tile * BLOCK_M, queries, width, BLOCK_M, WIDTH)
    g = load_rows(given, g_strides[2], tile * BLOCK_M, queries, value_width, BLOCK_M, VALUE_WIDTH)
    # A product of tiles like the gradients of the weights: where one key has all the weight, both have
    # the same bits, and their difference is 0 as it should be.
    o = load_rows(output, o_strides[2], tile * BLOCK_M, queries, value_width, BLOCK_M, VALUE_WIDTH)
    products = tl.dot(g, tl.trans(o), input_precision="ieee")
    own = tl.arange(0, BLOCK_M)
    mean = tl.sum(tl.where(own[:, None] == own[None, :], products, 0.0), 1)
    tl.store(means + at_row, mean, mask=i < queries)
    dq = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for first in range(0, keys_seen(tile, keys, BLOCK_M, CAUSAL), BLOCK_N):
        j = first + columns
        k = load_rows(key, k_strides[2], first, keys, width, BLOCK_N, WIDTH)
        v = load_rows(value, v_strides[2], first, keys, value_width, BLOCK_N, VALUE_WIDTH)
        s, seen = score_tile(q, k, i, j, queries, keys, scale,
                             valid, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
        _, ds = weight_gradients(s, seen, i, j, v, g, cut, last, top, total, mean, start, at,
                                 dropout, dropout_scale, DROPOUT)  # fmt: skip
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    store_rows(d_query, dq_strides[2], dq * scale, tile * BLOCK_M, queries, width, BLOCK_M, WIDTH)


@triton.jit
def key_gradients(
    query, key, value, valid, seed, cuts, lasts, tops, sums, means, given, d_key, d_value,
    q_strides, k_strides, v_strides, valid_strides, g_strides, dk_strides, dv_strides,
    key_tiles, groups, shared, queries, keys, width, value_width, scale, dropout, dropout_scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: each program has one tile of them and goes through all that see it."""
    tile, b, group = place(key_tiles, groups)
    key += b * k_strides[0] + group * k_strides[1]
    value += b * v_strides[0] + group * v_strides[1]
    d_key += b * dk_strides[0] + group * dk_strides[1]
    d_value += b * dv_strides[0] + group * dv_strides[1]
    j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    start = 0
    if DROPOUT:
        start = tl.load(seed)
    k = load_rows(key, k_strides[2], tile * BLOCK_N, keys, width, BLOCK_N, WIDTH)
    v = load_rows(value, v_strides[2], tile * BLOCK_N, keys, value_width, BLOCK_N, VALUE_WIDTH)
    dk = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_N, VALUE_WIDTH], tl.float32)
    earliest = tile * BLOCK_N // BLOCK_M * BLOCK_M if CAUSAL else 0
    for head in range(shared):
        h = group * shared + head
        at = (b * groups * shared + h).to(tl.int32)
        seen_by = valid
        if MASKED:
            seen_by = valid + b * valid_strides[0] + h * valid_strides[1]
        for first in range(earliest, queries, BLOCK_M):
            i = first + rows
            at_row = (b * groups * shared + h) * queries + i
            cut = tl.load(cuts + at_row, mask=i < queries, other=float("inf"))
            last = tl.load(lasts + at_row, mask=i < queries, other=0)
            top = tl.load(tops + at_row, mask=i < queries, other=0.0)
            total = tl.load(sums + at_row, mask=i < queries, other=1.0)
            mean = tl.load(means + at_row, mask=i < queries, other=0.0)
            q = load_rows(query + b * q_strides[0] + h * q_strides[1], q_strides[2],
                          first, queries, width, BLOCK_M, WIDTH)  # fmt: skip
            g = load_rows(given + b * g_strides[0] + h * g_strides[1], g_strides[2],
                          first, queries, value_width, BLOCK_M, VALUE_WIDTH)  # fmt: skip
            s, seen = score_tile(q, k, i, j, queries, keys, scale,
                                 seen_by, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
            w, ds = weight_gradients(s, seen, i, j, v, g, cut, last, top, total, mean, start, at,
                                     dropout, dropout_scale, DROPOUT)  # fmt: skip
            dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision="ieee")
            dv = tl.dot(tl.trans(w.to(g.dtype)), g, dv, input_precision="ieee")
    store_rows(d_key, dk_strides[2], dk * scale, tile * BLOCK_N, keys, width, BLOCK_N, WIDTH)
    store_rows(d_value, dv_strides[2], dv, tile * BLOCK_N, keys, value_width, BLOCK_N, VALUE_WIDTH)
