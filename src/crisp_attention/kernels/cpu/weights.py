"""From kept scores to weights, and from the weights' gradient to the scores'."""

import math

import numpy as np

from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.native import compiled, summing
from crisp_attention.kernels.cpu.plan import ENTMAX15, SPARSEMAX
from crisp_attention.kernels.cpu.selection import INFINITY

NAN = np.float32(np.nan)
ONE, ZERO, HALF = np.float32(1), np.float32(0), np.float32(0.5)


@compiled
def weigh(rule, kept, count, norm):
    """Weights of the kept scores, in place; `norm` holds the row's two numbers: its largest score, and its sum or τ."""
    if rule == ENTMAX15:
        for t in range(count):
            root = max((kept[t] - norm[0]) * HALF - norm[1], ZERO)
            kept[t] = root * root
    elif rule == SPARSEMAX:
        for t in range(count):
            kept[t] = max(kept[t] - norm[0] - norm[1], ZERO)
    else:
        exponentials(kept, kept, norm[0], count)
        share = ONE / norm[1]
        for t in range(count):
            kept[t] *= share


@compiled
def with_sink(sink, norm):
    """Let a sink, a logit that takes weight and gives nothing, into a row's two numbers.

    Rows without a key, whose largest score is -inf, stay as they are.
    """
    high = norm[0]
    if high > -INFINITY:
        norm[0] = max(high, sink)
        norm[1] = norm[1] * np.float32(math.exp(high - norm[0])) + np.float32(math.exp(sink - norm[0]))
        if not sink < INFINITY:
            norm[1] = NAN


@summing
def sunk_gradient(weight, grad, count):
    """`score_gradient` of the softmax with a sink, whose weight is not among these; returns the mean gradient."""
    mean = ZERO
    for t in range(count):
        mean += weight[t] * grad[t]
    for t in range(count):
        grad[t] = weight[t] * (grad[t] - mean)
    return mean


@compiled
def uncap(job, row, add, index, count, grad):
    """The gradient of the products, in place of that of the scores (with their bias `add`) that are capped."""
    limit = np.float32(job.softcap)
    for t in range(count):
        score = row[index[t]]
        if job.bias:
            score -= add[index[t]]
        share = min(max(score / limit, -ONE), ONE)
        grad[t] *= ONE - share * share


@summing
def score_gradient(rule, weight, grad, count):
    """The gradient of the kept scores, in place of that of their weights."""
    slope, sum_ = ZERO, ZERO
    for t in range(count):
        u = _slope(rule, weight[t])
        slope += u
        sum_ += u * grad[t]
    mean = sum_ / slope if slope > 0 else sum_
    for t in range(count):
        grad[t] = _slope(rule, weight[t]) * (grad[t] - mean)


@compiled
def _slope(rule, weight):
    if rule == ENTMAX15:
        return np.float32(math.sqrt(weight))
    if rule == SPARSEMAX:
        return ONE if weight > 0 else ZERO
    return weight


@compiled
def drop(factor, index, count, dropout, seed, row):
    """factor[t] = 0 with probability `dropout`, else 1 / (1 - dropout): the same for the same key, row and seed."""
    start = drawn_of(seed, row)
    for t in range(count):
        factor[t] = _factor(dropout, start, index[t])


@compiled
def drop_column(weight, index, drawn, count, dropout, key):
    """`drop` of the weights of one key in some rows, in place, by what is `drawn_of` each."""
    for t in range(count):
        weight[t] *= _factor(dropout, np.uint32(drawn[index[t]]), key)


@compiled
def drawn_of(seed, row):
    """What dropout draws for a row."""
    return np.uint32(_mix(np.uint32(_mix(np.uint32(seed)) ^ np.uint32(row))) ^ np.uint32(row >> 32))


@compiled
def _factor(dropout, start, key):
    bound = np.uint32(min(dropout * 4294967296.0, 4294967295.0))
    hashed = _mix(np.uint32(np.uint32(key) * np.uint32(2654435769) + start))
    return np.float32(1 / (1 - dropout)) if hashed >= bound else ZERO


@compiled
def _mix(x):
    # the finaliser of MurmurHash3, twice: every bit of the result depends on every bit of x
    for _ in range(2):
        x = np.uint32(x ^ (x >> np.uint32(16)))
        x = np.uint32(x * np.uint32(0x85EBCA6B))
        x = np.uint32(x ^ (x >> np.uint32(13)))
        x = np.uint32(x * np.uint32(0xC2B2AE35))
        x = np.uint32(x ^ (x >> np.uint32(16)))
    return x


@compiled
def spoil(index, count, query_grad, key_grad, value_grad, width, value_width):
    """NaN in a row of scores is NaN in its gradient, and in those of the keys that it sees."""
    for d in range(width):
        query_grad[d] = NAN
    for t in range(count):
        for d in range(width):
            key_grad[index[t] * width + d] = NAN
        for d in range(value_width):
            value_grad[index[t] * value_width + d] = NAN
