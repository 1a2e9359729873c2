"""From the scores of one row of a block layout to its weights, and to the gradient of its scores."""

from crisp_attention.kernels.cpu import plan
from crisp_attention.kernels.cpu.block_tiles import ONE, ZERO, weigh_row
from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.limits import choose
from crisp_attention.kernels.cpu.native import compiled, floats_at, indices_at
from crisp_attention.kernels.cpu.selection import INFINITY, spoiled
from crisp_attention.kernels.cpu.vectors import survey
from crisp_attention.kernels.cpu.weights import NAN, score_gradient


@compiled
def _softmax(row, columns, norm):
    """Weights in place of the scores of a row; `norm` is what they are computed from again."""
    norm[0], norm[1] = ZERO, ONE  # of a row that sees nothing
    _, high, _, broken, _, _ = survey(row, columns)
    if high > -INFINITY or broken > 0:
        norm[0] = high
        norm[1] = exponentials(row, row, high, columns)
        if spoiled(high, broken):
            norm[1] = NAN
    else:
        exponentials(row, row, ZERO, columns)
    share = ONE / norm[1]
    for j in range(columns):
        row[j] *= share


@compiled
def keep(job, row, columns, at, index, kept, work):
    """Weights in place of the scores of row number `at`, and what they are computed from again."""
    norm = floats_at(job.norm + 8 * at)
    threshold, tie = floats_at(job.threshold), indices_at(job.tie)
    if job.rule == plan.DENSE:
        _softmax(row, columns, norm)
    else:
        _, threshold[at], tie[at] = choose(job, row, columns, index, kept, work, norm)
        weigh_row(job, row, columns, threshold[at], tie[at], norm, index, kept)
    if norm[1] != norm[1]:
        for j in range(columns):
            row[j] = NAN


@compiled
def slopes_of(job, row, grads, columns, at, index, kept, factors):
    """Weights after dropout in place of the scores of row number `at`, and their gradient in place of the weights'.

    `factors` are those of dropout.
    """
    norm = floats_at(job.norm + 8 * at)
    threshold, tie = floats_at(job.threshold)[at], indices_at(job.tie)[at]
    weigh_row(job, row, columns, threshold, tie, norm, index, kept)
    if job.dropout > 0:
        for j in range(columns):
            grads[j] *= factors[j]
    score_gradient(job.rule, row, grads, columns)
    for j in range(columns):
        grads[j] *= job.scale
        if job.dropout > 0:
            row[j] *= factors[j]
    if norm[1] != norm[1]:
        for j in range(columns):
            row[j] = grads[j] = NAN
