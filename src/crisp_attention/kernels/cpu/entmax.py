"""α-entmax for any α in (1, 2]: its threshold τ by Newton's method, its weights and its gradients, one of α among them.

With z = (α - 1) (score - largest), the weights are max(z - τ, 0) ** (1 / (α - 1)) (arXiv 1909.00015).
"""

import numpy as np

from crisp_attention.kernels.cpu.counts import outline
from crisp_attention.kernels.cpu.groups import at_least
from crisp_attention.kernels.cpu.native import (
    compiled,
    doubles_at,
    floats_after,
    floats_at,
    indices_at,
    summing,
)
from crisp_attention.kernels.cpu.plan import LANES, MUCH
from crisp_attention.kernels.cpu.powers import (
    ANY,
    WHOLE,
    sums_above,
    weights,
    weights_and_slopes,
    wide_sums,
)
from crisp_attention.kernels.cpu.selection import EVERYWHERE, INFINITY, LOWEST, NEWTON, padded, spoiled
from crisp_attention.kernels.cpu.spans import bounds, end_of
from crisp_attention.kernels.cpu.vectors import compact, survey

NAN, ZERO, HALF, ONE = np.float32(np.nan), np.float32(0), np.float32(0.5), np.float32(1)
# how far a power is from a whole number that it is taken for
NEAR = np.float32(2e-6)
# Newton's method squares what is left to τ: after a step as short as this part of τ, next to nothing
CLOSE = np.float32(1e-3)
# of a power, the same: large ones are nearly exponentials, in which what is left is a factor that their sum takes away
ALIKE = np.float32(2e-5)
# τ may turn out to be as many times as low as the one that the search starts at
AROUND = np.float32(1.05)


@compiled
def exponent_of(job, head):
    """α of a head."""
    return floats_at(job.own)[head] if job.own else np.float32(job.level)


@compiled
def kind_of(alpha):
    """The whole number that the power of slopes is, if it is one of WHOLE, else ANY."""
    power = ONE / (alpha - ONE) - ONE
    for whole in WHOLE:
        if abs(power - whole) <= NEAR * whole:
            return whole
    return ANY


@compiled
def choose_entmax(job, alpha, batch, head, first, rows, scores, index, kept):
    """Note threshold, tie, largest score and τ of each row of a tile."""
    begin, end = bounds(job, batch)
    kind, ahead = kind_of(alpha), INFINITY
    for r in range(rows):
        at = (batch * job.heads + head) * job.queries + first + r
        row, n = floats_after(scores, r * padded(job.keys)), end_of(job, first + r, begin, end)
        norm = floats_at(job.norm + 8 * at)
        threshold, ahead = _choose(alpha, kind, row, padded(n), index, kept, norm, ahead)
        floats_at(job.threshold)[at], indices_at(job.tie)[at] = threshold, EVERYWHERE


@compiled
def _choose(alpha, kind, row, columns, index, kept, norm, ahead):
    """A row's threshold, and how far it lies above the mean, which may be about as far in the next row."""
    high, seen, total = outline(row, columns)
    broken = 0
    if not abs(total) < INFINITY:  # which finite scores may add up to as well
        _, high, _, broken, _, _ = survey(row, columns)
    spoilt = spoiled(high, broken)
    norm[0], norm[1] = high, NAN if spoilt else ZERO
    if seen == 0 or spoilt:
        return INFINITY, ahead
    factor, mean = alpha - ONE, total / np.float32(seen)
    start = -ONE
    # τ is highest where all scores are the same: there it is -seen ** -(α - 1)
    if abs(ahead) < INFINITY and abs(mean) < INFINITY and factor <= HALF:
        start = min(max((mean + ahead - high) * factor, start), -(np.float32(seen) ** -factor))
    norm[1] = _tau(kind, row, columns, high, factor, mean, start, index, kept)
    # a little below τ: what lies between weighs nothing
    edge = high + norm[1] / factor
    return max(edge - (abs(high) + abs(edge) + ONE) * np.float32(1e-6), LOWEST), edge - mean


@compiled
def _filled(values, count, value):
    """Fill the rest of the last vector of `count` values, which has room for one more; returns where it ends."""
    for t in range(count, count + LANES):
        values[t] = value
    return padded(count)


@compiled
def _tau(kind, row, columns, high, factor, mean, start, index, kept):
    """By Newton's method on (the sum of weights) ** (α - 1), nearly a straight line, which is convex.

    From the left, where -1 is, every step stays on the left; from the right the first one leads there.
    """
    tau, power, lowest, scores, count = start, ONE / factor - ONE, INFINITY, row, columns
    close = max(CLOSE, ALIKE * power)
    for _ in range(NEWTON):
        if tau < lowest:  # what lies above a little less than this, if that is few
            lowest, scores, count = max(tau * AROUND, -ONE), row, columns
            edge = high + lowest / factor
            if edge > mean:
                scores = kept
                count = _filled(kept, compact(row, columns, edge, EVERYWHERE, index, kept), -INFINITY)
        total, slope = sums_above(kind, scores, count, high, factor, tau, power)
        step = np.float32(total / slope * (1 - np.float64(total) ** -np.float64(factor)))
        new = max(tau + step, -ONE)
        # slopes end in a jump where the power is below 1: there a short step may have a long one behind it
        if power >= ONE - NEAR and abs(step) < -close * new:
            return new
        if new == tau or (new < tau and tau != start):
            return new
        tau = new
    return tau


@compiled
def keeps_much_of(job, batch, head, first, rows, scores):
    """Whether what is kept of a tile is `MUCH`."""
    begin, end = bounds(job, batch)
    total = 0
    for r in range(rows):
        at = (batch * job.heads + head) * job.queries + first + r
        row, n = floats_after(scores, r * padded(job.keys)), end_of(job, first + r, begin, end)
        total += at_least(row, padded(n), floats_at(job.threshold)[at])
    return total > MUCH * rows * end_of(job, first + rows - 1, begin, end)


@compiled
def kept_by_entmax(row, n, threshold, index, kept):
    """Write what is kept of a row; returns how many."""
    return compact(row, padded(n), threshold, EVERYWHERE, index, kept) if threshold < INFINITY else 0


@compiled
def weigh_entmax(alpha, scores, count, norm):
    """Weights of the kept scores, in place, where there is room for one vector more."""
    if count > 0:
        columns = _filled(scores, count, -INFINITY)
        _weigh(alpha, scores, columns, norm)


@compiled
def _weigh(alpha, scores, columns, norm):
    factor = alpha - ONE
    share = ONE / weights(kind_of(alpha), scores, columns, norm[0], factor, norm[1], ONE / factor - ONE)
    for t in range(columns):
        scores[t] *= share


@compiled
def weigh_entmax_tile(job, alpha, batch, head, first, rows, scores):
    """Weights in place of a tile's scores, zeros where there are none."""
    begin, end = bounds(job, batch)
    stride, columns = padded(job.keys), padded(end_of(job, first + rows - 1, begin, end))
    for r in range(rows):
        at = (batch * job.heads + head) * job.queries + first + r
        row, norm = floats_after(scores, r * stride), floats_at(job.norm + 8 * at)
        seen = np.int64(0)
        if floats_at(job.threshold)[at] < INFINITY:
            seen = padded(end_of(job, first + r, begin, end))
            _weigh(alpha, row, seen, norm)
        for j in range(seen, columns):
            row[j] = ZERO
        if norm[1] != norm[1]:
            row[0] = NAN


@compiled
def weigh_and_slope(alpha, learns, scores, count, norm, slope, rise):
    """`weigh_entmax`, and what `entmax_gradient` needs, for that of α too if it `learns`."""
    columns = _filled(scores, count, -INFINITY)
    _weigh_and_slope(alpha, learns, scores, columns, norm, slope, rise)


@compiled
def _weigh_and_slope(alpha, learns, scores, columns, norm, slope, rise):
    factor = alpha - ONE
    kind = ANY if learns else kind_of(alpha)
    total = weights_and_slopes(
        kind, scores, columns, norm[0], factor, norm[1], ONE / factor - ONE, slope, rise
    )
    share = ONE / total if columns > 0 else ZERO
    for t in range(columns):
        scores[t] *= share


@compiled
def entmax_gradient(alpha, learns, slope, rise, grad, count):
    """The gradient of the kept scores, in place of that of their weights; returns that of α, 0 if it does not learn."""
    columns = _filled(grad, count, ZERO)
    return _gradient(alpha, learns, slope, rise, grad, columns, ONE)


@compiled
def _gradient(alpha, learns, slope, rise, grad, columns, scale):
    own, mean = 0.0, ZERO
    if learns:  # which the errors of all rows add up in
        total, risen, moved, product = wide_sums(slope, rise, grad, columns)
        middle = risen / total if total > 0 else 0.0
        own, mean = (product - middle * moved) / np.float64(alpha - ONE) ** 2, np.float32(middle)
    else:
        mean = _mean(slope, grad, columns)
    for t in range(columns):
        grad[t] = slope[t] * (grad[t] - mean) * scale
    return own


@summing
def _mean(slope, grad, columns):
    total, risen = ZERO, ZERO
    for t in range(columns):
        total += slope[t]
        risen += slope[t] * grad[t] if slope[t] != 0 else ZERO
    return risen / total if total > 0 else ZERO


@compiled
def entmax_tile_gradients(job, alpha, batch, head, first, rows, scores, grads, slope, rise):
    """Weights in place of a tile's scores, and their products' gradients in place of the weights'; α's is noted."""
    begin, end = bounds(job, batch)
    stride, columns = padded(job.keys), padded(end_of(job, first + rows - 1, begin, end))
    for r in range(rows):
        at = (batch * job.heads + head) * job.queries + first + r
        row, grad = floats_after(scores, r * stride), floats_after(grads, r * stride)
        seen, own = np.int64(0), 0.0
        if floats_at(job.threshold)[at] < INFINITY:
            seen = padded(end_of(job, first + r, begin, end))
            learns = job.own_grad != 0
            _weigh_and_slope(alpha, learns, row, seen, floats_at(job.norm + 8 * at), slope, rise)
            own = _gradient(alpha, learns, slope, rise, grad, seen, np.float32(job.scale))
        if job.own_grad:
            doubles_at(job.own_grad)[at] = own
        for j in range(seen, columns):
            row[j], grad[j] = ZERO, ZERO
