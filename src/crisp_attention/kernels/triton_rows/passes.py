"""The passes of the Triton kernels over rows, and the search for what a row keeps."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_rows.candidates import CANDIDATES, among_candidates, image, preimage
from crisp_attention.kernels.triton_rows.tiles import (
    PRECISION,
    dropped,
    kept_of,
    keys_seen,
    load_rows,
    place,
    score_tile,
    store_rows,
)

TOPK = tl.constexpr(0)
TOPP = tl.constexpr(1)
THRESHOLD = tl.constexpr(2)
GUESSES = tl.constexpr(8)  # steps that trust the spread of the scores, before halving takes over


@triton.jit
def find_cuts(
    query, key, valid, count_of, candidates, cuts, lasts, tops,
    q_strides, k_strides, valid_strides,
    row_tiles, heads, shared, queries, keys, width, scale, number,
    RULE: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Threshold, last tied key and largest score of every row, each (B, H, L).

    The k-th largest score lies between `low`, with `at_low` >= k scores at or above it, and `high`,
    with fewer. Each pass over the keys counts at three guesses between them and notes the two scores
    next to the middle one, so that the bounds move from score to score; it ends when exactly k scores
    are at or above `low`, or when only one value is left. Once there are few scores between the bounds,
    they are collected, and the rest of the search is among them. For top-p, weights are summed in place of
    counting. The guesses follow the spread of the scores first, and then halve the integer images.
    """
    tile, b, h = place(row_tiles, heads)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1]
    if MASKED:
        valid += b * valid_strides[0] + h * valid_strides[1]
    i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    q = load_rows(query, q_strides[2], tile * BLOCK_M, queries, width, BLOCK_M, WIDTH)
    end = keys_seen(tile, keys, BLOCK_M, CAUSAL)

    seen_keys = tl.zeros([BLOCK_M], tl.int32)
    broken = tl.zeros([BLOCK_M], tl.int32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    least = tl.full([BLOCK_M], float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, end, BLOCK_N):
        k = load_rows(key, k_strides[2], first, keys, width, BLOCK_N, WIDTH)
        s, seen = score_tile(q, k, i, first + columns, queries, keys, scale,
                             valid, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
        seen_keys += tl.sum(seen.to(tl.int32), 1)
        broken = tl.maximum(broken, tl.max((seen & (s != s)).to(tl.int32), 1))
        top = tl.maximum(top, tl.max(tl.where(seen & (s == s), s, float("-inf")), 1))
        least = tl.minimum(least, tl.min(tl.where(seen & (s == s), s, float("inf")), 1))
        total += tl.sum(tl.where(seen, s, 0.0), 1)
        squares += tl.sum(tl.where(seen, s * s, 0.0), 1)

    # a row whose largest score is not finite is NaN, whatever it would keep; nothing is searched for in it
    sound = (seen_keys > 0) & (broken == 0) & (top > float("-inf")) & (top < float("inf"))
    last = tl.full([BLOCK_M], 0, tl.int32) + keys
    if RULE == THRESHOLD:
        cut = top + number
    else:
        if RULE == TOPP:
            everything = tl.zeros([BLOCK_M], tl.float32)
            for first in range(0, end, BLOCK_N):
                k = load_rows(key, k_strides[2], first, keys, width, BLOCK_N, WIDTH)
                s, seen = score_tile(q, k, i, first + columns, queries, keys, scale,
                                     valid, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
                everything += tl.sum(tl.where(seen, tl.exp(s - top[:, None]), 0.0), 1)
            wanted = everything * number
        else:
            everything = seen_keys.to(tl.float32)
            wanted = tl.load(count_of + seen_keys).to(tl.float32)

        low = image(tl.where(sound, least, 0.0))
        high = image(tl.where(sound, top, 0.0)) + 1
        at_low, at_high = everything, tl.zeros([BLOCK_M], tl.float32)
        mean = total / seen_keys
        deviation = tl.sqrt(tl.maximum(squares / seen_keys - mean * mean, 0.0))
        middle = mean + deviation * tl.log(everything / wanted - 1.0) * 0.588  # normal, nearly logistic
        if RULE == TOPP:
            middle += deviation * deviation  # where the mass of normal scores is centred
        side = deviation * 0.1

        search = sound & (high - low > 1)
        wide = search
        if RULE == TOPK:
            search = search & (at_low != wanted)
            wide = search & (at_low - at_high > CANDIDATES)
        step = 0
        while tl.max(wide.to(tl.int32), 0) > 0:
            if step > 0:
                lowest, highest = preimage(low), preimage(high - 1)
                inside = at_low - at_high
                middle = lowest + (highest - lowest) * ((at_low - wanted + 0.5 * (RULE == TOPK)) / inside)
                side = (highest - lowest) * (0.1 if RULE == TOPP else 1.0 / tl.sqrt(inside))
            guess, guess_below, guess_above = image(middle), image(middle - side), image(middle + side)
            if step >= GUESSES:
                gap = high - low
                guess, guess_below, guess_above = low + gap // 2, low + gap // 4, low + gap - gap // 4
            guess = tl.minimum(tl.maximum(guess, low + 1), high - 1)
            guess_below = tl.minimum(tl.maximum(guess_below, low + 1), guess)
            guess_above = tl.maximum(tl.minimum(guess_above, high - 1), guess)
            at, below, above = preimage(guess), preimage(guess_below), preimage(guess_above)

            at_guess = tl.zeros([BLOCK_M], tl.float32)
            at_below = tl.zeros([BLOCK_M], tl.float32)
            at_above = tl.zeros([BLOCK_M], tl.float32)
            next_up = tl.full([BLOCK_M], float("inf"), tl.float32)
            next_down = tl.full([BLOCK_M], float("-inf"), tl.float32)
            for first in range(0, end, BLOCK_N):
                k = load_rows(key, k_strides[2], first, keys, width, BLOCK_N, WIDTH)
                s, seen = score_tile(q, k, i, first + columns, queries, keys, scale,
                                     valid, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
                s = tl.where(seen, s, float("-inf"))
                each = tl.exp(s - top[:, None]) if RULE == TOPP else tl.full(s.shape, 1.0, tl.float32)
                up = s >= at[:, None]
                at_guess += tl.sum(tl.where(up, each, 0.0), 1)
                at_below += tl.sum(tl.where(s >= below[:, None], each, 0.0), 1)
                at_above += tl.sum(tl.where(s >= above[:, None], each, 0.0), 1)
                next_up = tl.minimum(next_up, tl.min(tl.where(up, s, float("inf")), 1))
                next_down = tl.maximum(next_down, tl.max(tl.where(up, float("-inf"), s), 1))

            enough = search & (at_below >= wanted)
            low, at_low = tl.where(enough, guess_below, low), tl.where(enough, at_below, at_low)
            enough = search & (at_guess >= wanted)
            low, at_low = tl.where(enough, image(next_up), low), tl.where(enough, at_guess, at_low)
            enough = search & (at_above >= wanted) & (guess_above > low)
            low, at_low = tl.where(enough, guess_above, low), tl.where(enough, at_above, at_low)
            short = search & (at_above < wanted)
            high, at_high = tl.where(short, guess_above, high), tl.where(short, at_above, at_high)
            short = search & (at_guess < wanted)
            high, at_high = tl.where(short, image(next_down) + 1, high), tl.where(short, at_guess, at_high)
            short = search & (at_below < wanted) & (guess_below < high)
            high, at_high = tl.where(short, guess_below, high), tl.where(short, at_below, at_high)
            search = search & (high - low > 1)
            wide = search
            if RULE == TOPK:
                search = search & (at_low != wanted)
                wide = search & (at_low - at_high > CANDIDATES)
            step += 1
        if RULE == TOPK:  # noqa: SIM102 (at compile time)
            if tl.max(search.to(tl.int32), 0) > 0:
                own = candidates + (b * heads + h) * queries * CANDIDATES
                low, high, at_low, at_high = among_candidates(
                    q, key, valid, own, i, end, search, wanted, low, high, at_low, at_high,
                    k_strides[2], valid_strides[2], valid_strides[3], queries, keys, width, scale,
                    MASKED, CAUSAL, BLOCK_M, BLOCK_N, WIDTH)  # fmt: skip

        cut = preimage(low)
        weight = tl.exp(cut - top) if RULE == TOPP else tl.full([BLOCK_M], 1.0, tl.float32)
        room = tl.minimum(tl.maximum(tl.ceil((wanted - at_high) / weight), 1.0), keys * 1.0)
        tied = sound & (high - low <= 1) & (at_low - at_high > (room + 0.5) * weight)
        if tl.max(tied.to(tl.int32), 0) > 0:
            before = tl.zeros([BLOCK_M], tl.int32)
            bound = tl.full([BLOCK_M], -1, tl.int32)
            for first in range(0, end, BLOCK_N):
                j = first + columns
                k = load_rows(key, k_strides[2], first, keys, width, BLOCK_N, WIDTH)
                s, seen = score_tile(q, k, i, j, queries, keys, scale,
                                     valid, valid_strides[2], valid_strides[3], MASKED, CAUSAL)  # fmt: skip
                equal = (seen & (s == cut[:, None])).to(tl.int32)
                place_in_row = before[:, None] + tl.cumsum(equal, 1)
                fits = (equal > 0) & (place_in_row <= room.to(tl.int32)[:, None])
                bound = tl.maximum(bound, tl.max(tl.where(fits, j[None, :], -1), 1))
                before += tl.sum(equal, 1)
            last = tl.where(tied, bound, last)

    cut = tl.where(seen_keys == 0, float("inf"), tl.where(sound, cut, float("-inf")))
    at_row = (b * heads + h) * queries + i
    tl.store(cuts + at_row, cut, mask=i < queries)
    tl.store(lasts + at_row, last, mask=i < queries)
    tl.store(tops + at_row, top, mask=i < queries)


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
        mixed = tl.dot(w.to(v.dtype), v, mixed, input_precision=PRECISION)
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
    slope = tl.dot(given, tl.trans(v), input_precision=PRECISION)
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
    products = tl.dot(g, tl.trans(o), input_precision=PRECISION)
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
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
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
            dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision=PRECISION)
            dv = tl.dot(tl.trans(w.to(g.dtype)), g, dv, input_precision=PRECISION)
    store_rows(d_key, dk_strides[2], dk * scale, tile * BLOCK_N, keys, width, BLOCK_N, WIDTH)
    store_rows(d_value, dv_strides[2], dv, tile * BLOCK_N, keys, value_width, BLOCK_N, VALUE_WIDTH)
