"""Feature maps of rows, and their gradients, which the features themselves say."""

import numpy as np

from crisp_attention.kernels.cpu.exponentials import exponentials
from crisp_attention.kernels.cpu.linear.plan import ELU, RELU, SOFTMAX
from crisp_attention.kernels.cpu.native import compiled, floats_after, summing
from crisp_attention.kernels.cpu.vectors import survey

ONE, ZERO = np.float32(1), np.float32(0)


@compiled
def features(kind, out, rows, stride, count, width):
    """out[r, :] = φ(rows[r * stride : r * stride + width]) for r < count; `width` is a multiple of 16."""
    for r in range(count):
        line, source = floats_after(out, r * width), floats_after(rows, r * stride)
        if kind == SOFTMAX:
            for f in range(width):
                line[f] = source[f]
            _, high, _, _, _, _ = survey(line, width)
            share = ONE / exponentials(line, line, high, width)
            for f in range(width):
                line[f] *= share
        elif kind == ELU:
            for f in range(width):
                line[f] = source[f] if source[f] < ZERO or source[f] != source[f] else ZERO
            exponentials(line, line, ZERO, width)
            for f in range(width):
                line[f] += source[f] if source[f] > ZERO else ZERO
        else:
            for f in range(width):
                line[f] = ZERO if kind == RELU and source[f] < ZERO else source[f]


@summing
def dot(a, b, width):
    """The sum of products of two rows."""
    total = ZERO
    for f in range(width):
        total += a[f] * b[f]
    return total


@compiled
def energies(out, rows, weights, count, width):
    """The sums of squares of every row and its weight, in float64."""
    for f in range(count):
        line, total = floats_after(rows, f * width), np.float64(weights[f]) * np.float64(weights[f])
        for d in range(width):
            total += np.float64(line[d]) * np.float64(line[d])
        out[f] = total


@compiled
def through_features(kind, grads, rows, count, width):
    """Gradients of states, in place of those of their features; `rows` are the features."""
    for r in range(count):
        line, feature = floats_after(grads, r * width), floats_after(rows, r * width)
        if kind == SOFTMAX:
            mean = dot(line, feature, width)
            for f in range(width):
                line[f] = feature[f] * (line[f] - mean)
        elif kind == ELU:
            for f in range(width):
                line[f] *= ONE if feature[f] > ONE else feature[f]
        elif kind == RELU:
            for f in range(width):
                line[f] = line[f] if feature[f] > ZERO else ZERO
