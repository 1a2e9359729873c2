"""Tiles of which much is kept: weights and gradients as rows with zeros, multiplied by panels in place of gathering.

A product with zero costs what a product costs. What is not finite would become NaN there: such tiles are gathered.
"""

import math

import numpy as np

from crisp_attention.kernels.cpu.exponentials import exponentials_from
from crisp_attention.kernels.cpu.native import compiled, floats_after, floats_at, summing
from crisp_attention.kernels.cpu.panels import multiply, pack
from crisp_attention.kernels.cpu.plan import DENSE, STRIP, TOPK, TOPK_TOPP
from crisp_attention.kernels.cpu.selection import INFINITY, finite, padded
from crisp_attention.kernels.cpu.spans import bounds, end_of, keys_of, values_of
from crisp_attention.kernels.cpu.weights import ONE, ZERO


@compiled
def spread(row, columns, index, values, count):
    """row[index[t]] = values[t] for every t < count, and zero in the other columns."""
    for j in range(columns):
        row[j] = ZERO
    for t in range(count):
        row[index[t]] = values[t]


@compiled
def in_place(job):
    """Whether weights need no list of what is kept: they are written where the scores are."""
    return job.dropout == 0 and (job.rule == TOPK or job.rule == TOPK_TOPP or job.rule == DENSE)


@compiled
def place(row, n, columns, threshold, tie, high):
    """row[j] = exp(row[j] - high) of what is kept, 0 in the other columns; returns the sum."""
    for j in range(tie + 1, n):
        if row[j] == threshold:
            row[j] = -INFINITY
    for j in range(padded(n), columns):
        row[j] = ZERO
    return exponentials_from(row, padded(n), threshold, high)


@compiled
def scale_by(row, columns, high, norm):
    """Weights in place of exponentials of differences to `high`; NaN in a row that has none."""
    share = np.float32(math.exp(high - norm[0])) / norm[1] if norm[1] != 0 else ZERO
    for j in range(columns):
        row[j] *= share


@compiled
def row_gradients(job, row, slopes, n, columns, threshold, tie, norm):
    """Weights in place of a row's scores, and the gradients of its products in place of those of its weights."""
    place(row, n, columns, threshold, tie, norm[0])
    scale_by(row, columns, norm[0], norm)
    _to_scores(row, slopes, columns, np.float32(job.scale))


@summing
def _to_scores(weight, grad, columns, scale):
    # what is not kept may have any gradient, infinite too
    total, sum_ = ZERO, ZERO
    for j in range(columns):
        total += weight[j]
        sum_ += weight[j] * grad[j] if weight[j] > 0 else ZERO
    mean = sum_ / total if total > 0 else ZERO
    for j in range(columns):
        grad[j] = weight[j] * (grad[j] - mean) * scale if weight[j] > 0 else ZERO


@compiled
def finite_values(job, batch, group):
    """Whether all values of a head's valid keys are finite."""
    begin, end = bounds(job, batch)
    return finite(values_of(job, batch, group), job.value_row, end - begin, job.value_width)


@compiled
def finite_keys(job, batch, group):
    """Whether all valid keys of a head are finite."""
    begin, end = bounds(job, batch)
    return finite(keys_of(job, batch, group), job.key_row, end - begin, job.width)


@compiled
def queries_of(job, batch, head, first):
    return floats_at(
        job.query + 4 * (batch * job.query_batch + head * job.query_head + first * job.query_row)
    )


@compiled
def gradients_of(job, batch, head, first):
    return floats_at(job.grad + 4 * (batch * job.grad_batch + head * job.grad_head + first * job.grad_row))


@compiled
def sound_tile(job, batch, head, first, rows):
    """Whether all of a tile's queries and gradients of outputs are finite, and its rows have weights."""
    norm = floats_at(job.norm + 8 * ((batch * job.heads + head) * job.queries + first))
    for r in range(rows):
        if norm[2 * r + 1] != norm[2 * r + 1]:
            return False
    query, grad = queries_of(job, batch, head, first), gradients_of(job, batch, head, first)
    return finite(query, job.query_row, rows, job.width) and finite(grad, job.grad_row, rows, job.value_width)


@compiled
def pack_values(job, batch, group, packed):
    """Lay out the values of a head for its tiles, if there is room for all of them."""
    if job.whole:
        begin, end = bounds(job, batch)
        values = values_of(job, batch, group)
        pack(packed, STRIP, values, job.value_row, end - begin, job.value_width, ONE)


@compiled
def weight_gradients(job, batch, head, first, rows, packed, slopes):
    """The gradients of all weights of a tile: products of the outputs' gradients with the values."""
    group = head // (job.heads // job.groups)
    begin, end = bounds(job, batch)
    grad, stride = gradients_of(job, batch, head, first), padded(job.keys)
    columns = padded(end_of(job, first + rows - 1, begin, end))
    for start in range(0, columns, STRIP):
        strip = packed
        if job.whole:
            strip = floats_after(packed, start * job.value_width)
        else:
            values = floats_after(values_of(job, batch, group), start * job.value_row)
            there = min(STRIP, end - begin - start)
            pack(strip, STRIP, values, job.value_row, there, job.value_width, ONE)
        sums, width = floats_after(slopes, start), min(STRIP, columns - start)
        multiply(sums, stride, grad, job.grad_row, 1, strip, STRIP, job.value_width, rows, width, False)


@compiled
def sum_values(job, batch, head, first, rows, weights):
    """The outputs of a tile from its rows of weights."""
    value = values_of(job, batch, head // (job.heads // job.groups))
    out = floats_at(job.out + 4 * (batch * job.out_batch + head * job.out_head + first * job.out_row))
    begin, end = bounds(job, batch)
    stride, seen = padded(job.keys), end_of(job, first + rows - 1, begin, end)
    multiply(out, job.out_row, weights, stride, 1, value, job.value_row, seen, rows, job.value_width, False)


@compiled
def sum_gradients(job, batch, head, first, rows, weights, slopes, key_grad, value_grad):
    """The gradients of a tile's queries, and what it adds to those of keys and values, from its rows of both."""
    key = keys_of(job, batch, head // (job.heads // job.groups))
    query, grad = queries_of(job, batch, head, first), gradients_of(job, batch, head, first)
    query_grad = floats_at(
        job.query_grad
        + 4 * (batch * job.query_grad_batch + head * job.query_grad_head + first * job.query_grad_row)
    )
    begin, end = bounds(job, batch)
    stride, seen = padded(job.keys), end_of(job, first + rows - 1, begin, end)
    multiply(
        query_grad, job.query_grad_row, slopes, stride, 1, key, job.key_row, seen, rows, job.width, False
    )
    multiply(key_grad, job.width, slopes, 1, stride, query, job.query_row, rows, seen, job.width, True)
    width = job.value_width
    multiply(value_grad, width, weights, 1, stride, grad, job.grad_row, rows, seen, width, True)
