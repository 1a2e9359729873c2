"""The passes of the Triton kernels over blocks: softmax attention to the listed blocks, linear attention to others."""

import triton
import triton.language as tl

from crisp_attention.kernels.triton_blocks.features import features, through_features
from crisp_attention.kernels.triton_rows.tiles import dropped, load_rows, place, store_rows


@triton.jit
def listed_block(blocks, at, number, count):
    """The number of a listed block."""
    return tl.load(blocks + at.to(tl.int64) * count + number)


@triton.jit
def scores_of(q, k, i, j, length, scale):
    """Scores in float32, -inf where a query or a key is not real."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    return tl.where((i[:, None] < length) & (j[None, :] < length), scores, float("-inf"))


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
    key, value, lengths, sums, weights,
    k_strides, v_strides,
    row_tiles, heads, tokens,
    MAP: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Σ φ(k)' v (WIDTH, VALUE_WIDTH) and Σ φ(k) (WIDTH) of a block of keys."""
    tile, b, g = place(row_tiles, heads)
    length = tl.load(lengths + b)
    key += b * k_strides[0] + g * k_strides[1]
    value += b * v_strides[0] + g * v_strides[1]
    k = load_rows(key, k_strides[2], tile * SIZE, length, WIDTH, SIZE, WIDTH)
    v = load_rows(value, v_strides[2], tile * SIZE, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
    real = tile * SIZE + tl.arange(0, SIZE) < length
    phi = tl.where(real[:, None], features(k, MAP), 0.0)
    at = (b * heads + g) * row_tiles + tile
    both = tl.dot(tl.trans(phi).to(v.dtype), v, input_precision="ieee")
    tl.store(state_at(sums, at, WIDTH, VALUE_WIDTH), both.to(sums.dtype.element_ty))
    tl.store(weights + at * WIDTH + tl.arange(0, WIDTH), tl.sum(phi, 0))


@triton.jit
def attend(
    query, key, value, lengths, blocks, counts, chosen, chosen_weights, output, linear, tops, weighed,
    q_strides, k_strides, v_strides, o_strides, l_strides,
    row_tiles, heads, shared, tokens, scale, seed, dropout, dropout_scale,
    DROPOUT: tl.constexpr, LINEAR: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a block of queries, the output of its linear attention, and what that weighs."""
    tile, b, h = place(row_tiles, heads)
    length = tl.load(lengths + b)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1]
    value += b * v_strides[0] + (h // shared) * v_strides[1]
    i = tile * SIZE + tl.arange(0, SIZE)
    at = (b * heads + h) * row_tiles + tile
    q = load_rows(query, q_strides[2], tile * SIZE, length, WIDTH, SIZE, WIDTH)
    top = tl.full([SIZE], float("-inf"), tl.float32)
    total = tl.zeros([SIZE], tl.float32)
    sums = tl.zeros([SIZE, VALUE_WIDTH], tl.float32)
    count = tl.load(counts + at)
    head, start = (b * heads + h).to(tl.int32), 0
    if DROPOUT:
        start = tl.load(seed)
    for number in range(count):
        first = listed_block(blocks, at, number, row_tiles) * SIZE
        j = first + tl.arange(0, SIZE)
        k = load_rows(key, k_strides[2], first, length, WIDTH, SIZE, WIDTH)
        v = load_rows(value, v_strides[2], first, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
        s = scores_of(q, k, i, j, length, scale)
        larger = tl.maximum(top, tl.max(s, 1))
        # all scores so far may be -inf, which weigh nothing; NaN makes its own weight NaN
        base = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(s - base[:, None])
        shrink = tl.exp(top - base)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            weights = dropped(weights, start, head, i, j, dropout, dropout_scale)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = larger
    # 0 / 0, NaN, where a real query sees -inf alone; 0 where it is padding
    real = (i < length) & (count > 0)
    found = tl.where(real[:, None], sums / tl.where(real, total, 1.0)[:, None], 0.0)
    base = b * o_strides[0] + h * o_strides[1]
    store_rows(output + base, o_strides[2], found, tile * SIZE, tokens, VALUE_WIDTH, SIZE, VALUE_WIDTH)
    rows = (b * heads + h) * tokens + i
    tl.store(tops + rows, tl.where(real, top + tl.log(total), 0.0), mask=i < tokens)
    if LINEAR:
        state, unit = halved(tl.load(state_at(chosen, at, WIDTH, VALUE_WIDTH)), q)
        weights = tl.load(chosen_weights + at * WIDTH + tl.arange(0, WIDTH))
        phi = features(q, MAP)
        weight = tl.where(i < length, tl.sum(phi * weights[None, :], 1), 0.0)
        reached = unit * tl.dot(phi.to(state.dtype), state, input_precision="ieee")
        reached = tl.where(
            (i < length)[:, None], reached / tl.where(weight == 0.0, 1.0, weight)[:, None], 0.0
        )
        base = b * l_strides[0] + h * l_strides[1]
        store_rows(linear + base, l_strides[2], reached, tile * SIZE, tokens, VALUE_WIDTH, SIZE, VALUE_WIDTH)
        tl.store(weighed + rows, weight, mask=i < tokens)


@triton.jit
def query_gradients(
    query, key, value, lengths, blocks, counts, chosen, chosen_weights, output, linear, tops, weighed,
    given, given_linear, means, slopes, slope_weights, d_query,
    q_strides, k_strides, v_strides, o_strides, l_strides, g_strides, gl_strides, dq_strides,
    row_tiles, heads, shared, tokens, scale, seed, dropout, dropout_scale,
    DROPOUT: tl.constexpr, LINEAR: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries, and of the sums that it chose; `means` are of every row gradient · output."""
    tile, b, h = place(row_tiles, heads)
    length = tl.load(lengths + b)
    query += b * q_strides[0] + h * q_strides[1]
    key += b * k_strides[0] + (h // shared) * k_strides[1]
    value += b * v_strides[0] + (h // shared) * v_strides[1]
    output += b * o_strides[0] + h * o_strides[1]
    given += b * g_strides[0] + h * g_strides[1]
    i = tile * SIZE + tl.arange(0, SIZE)
    at, rows = (b * heads + h) * row_tiles + tile, (b * heads + h) * tokens + i
    q = load_rows(query, q_strides[2], tile * SIZE, length, WIDTH, SIZE, WIDTH)
    o = load_rows(output, o_strides[2], tile * SIZE, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
    g = load_rows(given, g_strides[2], tile * SIZE, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
    top = tl.load(tops + rows, mask=i < length, other=0.0)
    mean = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(means + rows, mean, mask=i < tokens)
    slope = tl.zeros([SIZE, WIDTH], tl.float32)
    count = tl.load(counts + at)
    head, start = (b * heads + h).to(tl.int32), 0
    if DROPOUT:
        start = tl.load(seed)
    for number in range(count):
        first = listed_block(blocks, at, number, row_tiles) * SIZE
        j = first + tl.arange(0, SIZE)
        k = load_rows(key, k_strides[2], first, length, WIDTH, SIZE, WIDTH)
        v = load_rows(value, v_strides[2], first, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
        s = scores_of(q, k, i, j, length, scale)
        weights = tl.exp(s - top[:, None])
        steep = tl.dot(g, tl.trans(v), input_precision="ieee")
        if DROPOUT:
            steep = dropped(steep, start, head, i, j, dropout, dropout_scale)
        steep = weights * (steep - mean[:, None]) * scale
        slope += tl.dot(steep.to(k.dtype), k, input_precision="ieee")
    if LINEAR:
        linear += b * l_strides[0] + h * l_strides[1]
        given_linear += b * gl_strides[0] + h * gl_strides[1]
        state, unit = halved(tl.load(state_at(chosen, at, WIDTH, VALUE_WIDTH)), q)
        weights = tl.load(chosen_weights + at * WIDTH + tl.arange(0, WIDTH))
        phi = tl.where((i < length)[:, None], features(q, MAP), 0.0)
        reached = load_rows(linear, l_strides[2], tile * SIZE, length, VALUE_WIDTH, SIZE, VALUE_WIDTH).to(
            tl.float32
        )
        g = load_rows(given_linear, gl_strides[2], tile * SIZE, length, VALUE_WIDTH, SIZE, VALUE_WIDTH).to(
            tl.float32
        )
        weight = tl.load(weighed + rows, mask=i < length, other=0.0)
        share = 1.0 / tl.where(weight == 0.0, 1.0, weight)
        down = tl.where(weight == 0.0, 0.0, -share * tl.sum(g * reached, 1))
        steep, steep_unit = halved(g * share[:, None], q)
        steep = steep.to(state.dtype)
        d_phi = unit * steep_unit * tl.dot(steep, tl.trans(state), input_precision="ieee")
        d_phi += down[:, None] * weights[None, :]
        slope += through_features(d_phi, phi, MAP)
        both = steep_unit * tl.dot(tl.trans(phi).to(state.dtype), steep, input_precision="ieee")
        tl.store(state_at(slopes, at, WIDTH, VALUE_WIDTH), both.to(slopes.dtype.element_ty))
        tl.store(slope_weights + at * WIDTH + tl.arange(0, WIDTH), tl.sum(phi * down[:, None], 0))
    slope = tl.where((i < length)[:, None], slope, 0.0)
    base = b * dq_strides[0] + h * dq_strides[1]
    store_rows(d_query + base, dq_strides[2], slope, tile * SIZE, tokens, WIDTH, SIZE, WIDTH)


@triton.jit
def key_gradients(
    query, key, value, lengths, seeing, seeing_counts, slopes, slope_weights, tops,
    given, means, d_key, d_value,
    q_strides, k_strides, v_strides, g_strides, dk_strides, dv_strides,
    row_tiles, groups, shared, tokens, scale, seed, dropout, dropout_scale,
    DROPOUT: tl.constexpr, LINEAR: tl.constexpr, MAP: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and of its values, from the blocks of queries that see it and from its sums."""
    tile, b, group = place(row_tiles, groups)
    length = tl.load(lengths + b)
    key += b * k_strides[0] + group * k_strides[1]
    value += b * v_strides[0] + group * v_strides[1]
    j = tile * SIZE + tl.arange(0, SIZE)
    k = load_rows(key, k_strides[2], tile * SIZE, length, WIDTH, SIZE, WIDTH)
    v = load_rows(value, v_strides[2], tile * SIZE, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
    d_k = tl.zeros([SIZE, WIDTH], tl.float32)
    d_v = tl.zeros([SIZE, VALUE_WIDTH], tl.float32)
    heads, start = groups * shared, 0
    if DROPOUT:
        start = tl.load(seed)
    for h in range(group * shared, (group + 1) * shared):
        at = (b * heads + h) * row_tiles + tile
        count = tl.load(seeing_counts + at)
        for number in range(count):
            first = listed_block(seeing, at, number, row_tiles) * SIZE
            i = first + tl.arange(0, SIZE)
            rows = (b * heads + h) * tokens + i
            own = query + b * q_strides[0] + h * q_strides[1]
            q = load_rows(own, q_strides[2], first, length, WIDTH, SIZE, WIDTH)
            own = given + b * g_strides[0] + h * g_strides[1]
            g = load_rows(own, g_strides[2], first, length, VALUE_WIDTH, SIZE, VALUE_WIDTH)
            top = tl.load(tops + rows, mask=i < length, other=0.0)
            mean = tl.load(means + rows, mask=i < length, other=0.0)
            weights = tl.exp(scores_of(q, k, i, j, length, scale) - top[:, None])
            stays, steep = weights, tl.dot(g, tl.trans(v), input_precision="ieee")
            if DROPOUT:
                head = (b * heads + h).to(tl.int32)
                stays = dropped(weights, start, head, i, j, dropout, dropout_scale)
                steep = dropped(steep, start, head, i, j, dropout, dropout_scale)
            d_v += tl.dot(tl.trans(stays).to(g.dtype), g, input_precision="ieee")
            steep = weights * (steep - mean[:, None]) * scale
            d_k += tl.dot(tl.trans(steep).to(q.dtype), q, input_precision="ieee")
    if LINEAR:
        at = (b * groups + group) * row_tiles + tile
        state, unit = halved(tl.load(state_at(slopes, at, WIDTH, VALUE_WIDTH)), k)
        weights = tl.load(slope_weights + at * WIDTH + tl.arange(0, WIDTH))
        phi = tl.where((j < length)[:, None], features(k, MAP), 0.0)
        d_v += unit * tl.dot(phi.to(state.dtype), state, input_precision="ieee")
        d_phi = unit * tl.dot(v.to(state.dtype), tl.trans(state), input_precision="ieee") + weights[None, :]
        d_k += through_features(d_phi, phi, MAP)
    real = (j < length)[:, None]
    base = b * dk_strides[0] + group * dk_strides[1]
    store_rows(d_key + base, dk_strides[2], tl.where(real, d_k, 0.0), tile * SIZE, tokens, WIDTH, SIZE, WIDTH)
    base, d_v = b * dv_strides[0] + group * dv_strides[1], tl.where(real, d_v, 0.0)
    store_rows(d_value + base, dv_strides[2], d_v, tile * SIZE, tokens, VALUE_WIDTH, SIZE, VALUE_WIDTH)
