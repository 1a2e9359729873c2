"""The passes of the Triton kernels over blocks: softmax attention to seen blocks, linear attention to others."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_blocks.features import features, through_features
from crisp_attention.kernels.triton_blocks.tiles import (
    LOG2E,
    keys_of_band,
    load_tile,
    queries_of,
    queries_of_band,
    seen_of,
    span_of,
    store_tile,
)
from crisp_attention.kernels.triton_rows.tiles import PRECISION, dropped, place


@triton.jit
def state_at(states, at, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr):
    """Where the sums of a block are, (WIDTH, VALUE_WIDTH)."""
    row, column = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    return states + at.to(tl.int64) * WIDTH * VALUE_WIDTH + row[:, None] * VALUE_WIDTH + column[None, :]


@triton.jit
def halved(states, like):
    """States for a product with `like`, if that is float16 divided by their largest, and what they were divided by."""
    unit = 1.0
    if like.dtype == tl.float16:
        states = states.to(tl.float32)
        top = tl.max(tl.max(tl.abs(states), 1), 0)
        unit = tl.where((top > 0.0) & (top < float("inf")), top, 1.0)
        states = (states / unit).to(tl.float16)
    return states, unit


@triton.jit
def key_sums(
    key, value, spans, sums, weights,
    k_strides, v_strides,
    key_tiles, heads, keys,
    SPANS: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Σ φ(k)' v (WIDTH, VALUE_WIDTH) and Σ φ(k) (WIDTH) of a block of keys."""
    tile, b, g = place(key_tiles, heads)
    start, length = span_of(spans, b, keys, SPANS)
    key += b * k_strides[0] + g * k_strides[1] + start * k_strides[2]
    value += b * v_strides[0] + g * v_strides[1] + start * v_strides[2]
    k = load_tile(key, k_strides[2], tile * SIZE, 0, length, SIZE, WIDTH, False)
    v = load_tile(value, v_strides[2], tile * SIZE, 0, length, SIZE, VALUE_WIDTH, False)
    real = tile * SIZE + tl.arange(0, SIZE) < length
    phi = tl.where(real[:, None], features(k, MAP), 0.0)
    at = (b * heads + g) * key_tiles + tile
    both = tl.dot(tl.trans(phi).to(v.dtype), v, input_precision=PRECISION)
    tl.store(state_at(sums, at, WIDTH, VALUE_WIDTH), both.to(sums.dtype.element_ty))
    tl.store(weights + at * WIDTH + tl.arange(0, WIDTH), tl.sum(phi, 0))


@triton.jit
def attend(
    query, key, value, spans, blocks, counts, picked, chosen, chosen_weights, output, linear, tops, weighed,
    q_strides, k_strides, v_strides, o_strides, l_strides,
    query_tiles, key_tiles, heads, shared, queries, keys, first, scale, reach, dilation, local, anchors,
    seed, dropout, dropout_scale,
    EVEN: tl.constexpr, SPANS: tl.constexpr, CAUSAL: tl.constexpr, BAND: tl.constexpr, PICKED: tl.constexpr,
    DROPOUT: tl.constexpr, LINEAR: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a tile of queries, the output of its linear attention, and what that weighs."""
    tile, b, h = place(query_tiles, heads)
    start, length = span_of(spans, b, keys, SPANS)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1] + start * k_strides[2]
    value += b * v_strides[0] + (h // shared) * v_strides[1] + start * v_strides[2]
    i = tile * SIZE + tl.arange(0, SIZE)
    least, end = queries_of(start, length, first, queries)
    r = i - least
    at, rows = (b * heads + h) * query_tiles + tile, (b * heads + h) * queries + i
    q = load_tile(query, q_strides[2], tile * SIZE, least, end, SIZE, WIDTH, EVEN)
    top = tl.full([SIZE], float("-inf"), tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    sums = tl.zeros([SIZE, VALUE_WIDTH], tl.float32)
    few, low = 0, 0
    if BAND:
        few, low, count = keys_of_band(
            tile * SIZE - least, length, tl.maximum(reach, local - 1), anchors, CAUSAL, SIZE
        )
    else:
        count = tl.load(counts + at)
    head, base = (b * heads + h).to(tl.int32), 0
    if DROPOUT:
        base = tl.load(seed)
    for number in range(count):
        if BAND:
            block = tl.where(number < few, number, low + number - few)
        else:
            block = tl.load(blocks + at * key_tiles + number)
        c = block * SIZE + tl.arange(0, SIZE)
        k = load_tile(key, k_strides[2], block * SIZE, 0, length, SIZE, WIDTH, EVEN)
        v = load_tile(value, v_strides[2], block * SIZE, 0, length, SIZE, VALUE_WIDTH, EVEN)
        # in units of the logarithm to the base of 2
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        if not EVEN:
            seen = seen_of(r, c, length, reach, dilation, local, anchors, CAUSAL, BAND)
            if PICKED:
                seen = (
                    seen
                    & (tl.load(picked + rows * key_tiles + block, mask=i < queries, other=0) != 0)[:, None]
                )
            s = tl.where(seen, s, float("-inf"))
        larger = tl.maximum(top, tl.max(s, 1))
        # all scores so far may be -inf, which weigh nothing; NaN makes its own weight NaN
        level = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp2(s - level[:, None])
        shrink = tl.exp2(top - level)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            weights = dropped(weights, base, head, i, c, dropout, dropout_scale)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
        top = larger
    # 0 / 0, NaN, where a real query sees -inf alone; 0 where it is padding, or sees nothing
    real = (r >= 0) & (r < length) & (i < queries) & (count > 0)
    found = tl.where(real[:, None], sums / tl.where(real, total, 1.0)[:, None], 0.0)
    output += b * o_strides[0] + h * o_strides[1]
    store_tile(output, o_strides[2], found, tile * SIZE, queries, SIZE, VALUE_WIDTH)
    tl.store(tops + rows, tl.where(real, top + tl.log2(total), 0.0), mask=i < queries)
    if LINEAR:
        state, unit = halved(tl.load(state_at(chosen, at, WIDTH, VALUE_WIDTH)), q)
        weights = tl.load(chosen_weights + at * WIDTH + tl.arange(0, WIDTH))
        phi = features(q, MAP)
        inside = (r >= 0) & (r < length)
        weight = tl.where(inside, tl.sum(phi * weights[None, :], 1), 0.0)
        reached = unit * tl.dot(phi.to(state.dtype), state, input_precision=PRECISION)
        reached = tl.where(inside[:, None], reached / tl.where(weight == 0.0, 1.0, weight)[:, None], 0.0)
        linear += b * l_strides[0] + h * l_strides[1]
        store_tile(linear, l_strides[2], reached, tile * SIZE, queries, SIZE, VALUE_WIDTH)
        tl.store(weighed + rows, weight, mask=i < queries)


@triton.jit
def query_gradients(
    query, key, value, spans, blocks, counts, picked, chosen, chosen_weights, output, linear, tops, weighed,
    given, given_linear, means, slopes, slope_weights, d_query,
    q_strides, k_strides, v_strides, o_strides, l_strides, g_strides, gl_strides, dq_strides,
    query_tiles, key_tiles, heads, shared, queries, keys, first, scale, reach, dilation, local, anchors,
    seed, dropout, dropout_scale,
    EVEN: tl.constexpr, SPANS: tl.constexpr, CAUSAL: tl.constexpr, BAND: tl.constexpr, PICKED: tl.constexpr,
    DROPOUT: tl.constexpr, LINEAR: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries, and of the sums that it chose; `means` are of every row gradient · output."""
    tile, b, h = place(query_tiles, heads)
    start, length = span_of(spans, b, keys, SPANS)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1] + start * k_strides[2]
    value += b * v_strides[0] + (h // shared) * v_strides[1] + start * v_strides[2]
    output += b * o_strides[0] + h * o_strides[1]
    given += b * g_strides[0] + h * g_strides[1]
    i = tile * SIZE + tl.arange(0, SIZE)
    least, end = queries_of(start, length, first, queries)
    r = i - least
    at, rows = (b * heads + h) * query_tiles + tile, (b * heads + h) * queries + i
    q = load_tile(query, q_strides[2], tile * SIZE, least, end, SIZE, WIDTH, EVEN)
    o = load_tile(output, o_strides[2], tile * SIZE, least, end, SIZE, VALUE_WIDTH, EVEN)
    g = load_tile(given, g_strides[2], tile * SIZE, least, end, SIZE, VALUE_WIDTH, EVEN)
    top = tl.load(tops + rows, mask=i < queries, other=0.0)
    mean = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(means + rows, mean, mask=i < queries)
    slope = tl.zeros([SIZE, WIDTH], tl.float32)
    few, low = 0, 0
    if BAND:
        few, low, count = keys_of_band(
            tile * SIZE - least, length, tl.maximum(reach, local - 1), anchors, CAUSAL, SIZE
        )
    else:
        count = tl.load(counts + at)
    head, base = (b * heads + h).to(tl.int32), 0
    if DROPOUT:
        base = tl.load(seed)
    for number in range(count):
        if BAND:
            block = tl.where(number < few, number, low + number - few)
        else:
            block = tl.load(blocks + at * key_tiles + number)
        c = block * SIZE + tl.arange(0, SIZE)
        k = load_tile(key, k_strides[2], block * SIZE, 0, length, SIZE, WIDTH, EVEN)
        v = load_tile(value, v_strides[2], block * SIZE, 0, length, SIZE, VALUE_WIDTH, EVEN)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        if not EVEN:
            seen = seen_of(r, c, length, reach, dilation, local, anchors, CAUSAL, BAND)
            if PICKED:
                seen = (
                    seen
                    & (tl.load(picked + rows * key_tiles + block, mask=i < queries, other=0) != 0)[:, None]
                )
            s = tl.where(seen, s, float("-inf"))
        weights = tl.exp2(s - top[:, None])
        steep = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            steep = dropped(steep, base, head, i, c, dropout, dropout_scale)
        steep = weights * (steep - mean[:, None]) * scale
        slope = tl.dot(steep.to(k.dtype), k, slope, input_precision=PRECISION)
    inside = (r >= 0) & (r < length)
    if LINEAR:
        linear += b * l_strides[0] + h * l_strides[1]
        given_linear += b * gl_strides[0] + h * gl_strides[1]
        state, unit = halved(tl.load(state_at(chosen, at, WIDTH, VALUE_WIDTH)), q)
        weights = tl.load(chosen_weights + at * WIDTH + tl.arange(0, WIDTH))
        phi = tl.where(inside[:, None], features(q, MAP), 0.0)
        reached = load_tile(linear, l_strides[2], tile * SIZE, least, end, SIZE, VALUE_WIDTH, False).to(
            tl.float32
        )
        g = load_tile(given_linear, gl_strides[2], tile * SIZE, least, end, SIZE, VALUE_WIDTH, False)
        g = tl.where(inside[:, None], g.to(tl.float32), 0.0)
        weight = tl.load(weighed + rows, mask=i < queries, other=0.0)
        share = 1.0 / tl.where(weight == 0.0, 1.0, weight)
        down = tl.where(weight == 0.0, 0.0, -share * tl.sum(g * reached, 1))
        steep, steep_unit = halved(g * share[:, None], q)
        steep = steep.to(state.dtype)
        d_phi = unit * steep_unit * tl.dot(steep, tl.trans(state), input_precision=PRECISION)
        d_phi += down[:, None] * weights[None, :]
        slope += through_features(d_phi, phi, MAP)
        both = steep_unit * tl.dot(tl.trans(phi).to(state.dtype), steep, input_precision=PRECISION)
        tl.store(state_at(slopes, at, WIDTH, VALUE_WIDTH), both.to(slopes.dtype.element_ty))
        tl.store(slope_weights + at * WIDTH + tl.arange(0, WIDTH), tl.sum(phi * down[:, None], 0))
    slope = tl.where(inside[:, None], slope, 0.0)
    d_query += b * dq_strides[0] + h * dq_strides[1]
    store_tile(d_query, dq_strides[2], slope, tile * SIZE, queries, SIZE, WIDTH)


@triton.jit
def key_gradients(
    query, key, value, spans, seeing, seeing_counts, picked, slopes, slope_weights, tops,
    given, means, d_key, d_value,
    q_strides, k_strides, v_strides, g_strides, dk_strides, dv_strides,
    query_tiles, key_tiles, groups, shared, queries, keys, first, scale, reach, dilation, local, anchors,
    seed, dropout, dropout_scale,
    EVEN: tl.constexpr, SPANS: tl.constexpr, CAUSAL: tl.constexpr, BAND: tl.constexpr, PICKED: tl.constexpr,
    DROPOUT: tl.constexpr, LINEAR: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and of its values, from the tiles of queries that see it and from its sums."""
    tile, b, group = place(key_tiles, groups)
    start, length = span_of(spans, b, keys, SPANS)
    key += b * k_strides[0] + group * k_strides[1] + start * k_strides[2]
    value += b * v_strides[0] + group * v_strides[1] + start * v_strides[2]
    c = tile * SIZE + tl.arange(0, SIZE)
    k = load_tile(key, k_strides[2], tile * SIZE, 0, length, SIZE, WIDTH, EVEN)
    v = load_tile(value, v_strides[2], tile * SIZE, 0, length, SIZE, VALUE_WIDTH, EVEN)
    least, end = queries_of(start, length, first, queries)
    d_k = tl.zeros([SIZE, WIDTH], tl.float32)
    d_v = tl.zeros([SIZE, VALUE_WIDTH], tl.float32)
    heads, base = groups * shared, 0
    few, begin, low, count = 0, 0, 0, 0
    if BAND:
        few, begin, low, count = queries_of_band(
            tile * SIZE, length, least, queries, tl.maximum(reach, local - 1), anchors, CAUSAL, SIZE
        )
    if DROPOUT:
        base = tl.load(seed)
    for h in range(group * shared, (group + 1) * shared):
        at = (b * heads + h) * key_tiles + tile
        if not BAND:
            count = tl.load(seeing_counts + at)
        for number in range(count):
            if BAND:
                other = tl.where(number < few, begin + number, low + number - few)
            else:
                other = tl.load(seeing + at * query_tiles + number)
            i = other * SIZE + tl.arange(0, SIZE)
            r = i - least
            rows = (b * heads + h) * queries + i
            own = query + b * q_strides[0] + h * q_strides[1]
            q = load_tile(own, q_strides[2], other * SIZE, least, end, SIZE, WIDTH, EVEN)
            own = given + b * g_strides[0] + h * g_strides[1]
            g = load_tile(own, g_strides[2], other * SIZE, least, end, SIZE, VALUE_WIDTH, EVEN)
            real = (i >= least) & (i < end)
            top = tl.load(tops + rows, mask=real, other=0.0)
            mean = tl.load(means + rows, mask=real, other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
            if not EVEN:
                seen = seen_of(r, c, length, reach, dilation, local, anchors, CAUSAL, BAND)
                if PICKED:
                    seen = (
                        seen
                        & (tl.load(picked + rows * key_tiles + tile, mask=i < queries, other=0) != 0)[:, None]
                    )
                s = tl.where(seen, s, float("-inf"))
            weights = tl.exp2(s - top[:, None])
            stays, steep = weights, tl.dot(g, tl.trans(v), input_precision=PRECISION)
            if DROPOUT:
                head = (b * heads + h).to(tl.int32)
                stays = dropped(weights, base, head, i, c, dropout, dropout_scale)
                steep = dropped(steep, base, head, i, c, dropout, dropout_scale)
            d_v = tl.dot(tl.trans(stays).to(g.dtype), g, d_v, input_precision=PRECISION)
            steep = weights * (steep - mean[:, None]) * scale
            d_k = tl.dot(tl.trans(steep).to(q.dtype), q, d_k, input_precision=PRECISION)
    if LINEAR:
        at = (b * groups + group) * key_tiles + tile
        state, unit = halved(tl.load(state_at(slopes, at, WIDTH, VALUE_WIDTH)), k)
        weights = tl.load(slope_weights + at * WIDTH + tl.arange(0, WIDTH))
        phi = tl.where((c < length)[:, None], features(k, MAP), 0.0)
        d_v += unit * tl.dot(phi.to(state.dtype), state, input_precision=PRECISION)
        d_phi = (
            unit * tl.dot(v.to(state.dtype), tl.trans(state), input_precision=PRECISION) + weights[None, :]
        )
        d_k += through_features(d_phi, phi, MAP)
    d_key += b * dk_strides[0] + group * dk_strides[1] + start * dk_strides[2]
    d_value += b * dv_strides[0] + group * dv_strides[1] + start * dv_strides[2]
    store_tile(d_key, dk_strides[2], d_k, tile * SIZE, length, SIZE, WIDTH)
    store_tile(d_value, dv_strides[2], d_v, tile * SIZE, length, SIZE, VALUE_WIDTH)
