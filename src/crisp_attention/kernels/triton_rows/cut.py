"""The threshold of every row: with it and a bound on the tied keys, a key's fate is seen from its score."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_rows.tiles import keys_seen, load_rows, place, score_tile

TOPK = tl.constexpr(0)
TOPP = tl.constexpr(1)
THRESHOLD = tl.constexpr(2)
GUESSES = tl.constexpr(8)  # steps that trust the spread of the scores, before halving takes over


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
def find_cuts(
    query, key, valid, count_of, cuts, lasts, tops,
    q_strides, k_strides, valid_strides,
    row_tiles, heads, shared, queries, keys, width, scale, number,
    RULE: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Threshold, last tied key and largest score of every row, each (B, H, L).

    The k-th largest score lies between `low`, with `at_low` >= k scores at or above it, and `high`,
    with fewer. Each pass over the keys counts at three guesses between them and notes the two scores
    next to the middle one, so that the bounds move from score to score; it ends when exactly k scores
    are at or above `low`, or when only one value is left. For top-p, weights are summed in place of
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
        if RULE == TOPK:
            search = search & (at_low != wanted)
        step = 0
        while tl.max(search.to(tl.int32), 0) > 0:
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
            if RULE == TOPK:
                search = search & (at_low != wanted)
            step += 1

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
