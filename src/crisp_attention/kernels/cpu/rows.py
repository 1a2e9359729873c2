"""Products of one row with rows chosen by index, of any length: whole vectors first, then the rest."""

import numpy as np

from crisp_attention.kernels.cpu import vectors
from crisp_attention.kernels.cpu.native import compiled, floats_after

ZERO = np.float32(0)


@compiled
def clear(rows, count):
    """rows[:count] = 0."""
    for t in range(count):
        rows[t] = ZERO


@compiled
def copy_rows(goal, rows, stride, count, width, factor):
    """Rows side by side, times a factor."""
    scale = np.float32(factor)
    for r in range(count):
        own, source = floats_after(goal, r * width), floats_after(rows, r * stride)
        for d in range(width):
            own[d] = scale * source[d]


@compiled
def gather_sum(out, rows, stride, index, weight, count, width, add):
    """out[:width] = sum of weight[t] * rows[index[t], :width] over t < count, added to what it holds if `add`."""
    done = 0
    while width - done >= 64:
        vectors.gather_sum(
            floats_after(out, done), floats_after(rows, done), stride, index, weight, count, add, 64
        )
        done += 64
    if width - done >= 32:
        vectors.gather_sum(
            floats_after(out, done), floats_after(rows, done), stride, index, weight, count, add, 32
        )
        done += 32
    if width - done >= 16:
        vectors.gather_sum(
            floats_after(out, done), floats_after(rows, done), stride, index, weight, count, add, 16
        )
        done += 16
    for d in range(done, width):
        total = out[d] if add else ZERO
        for t in range(count):
            total += weight[t] * rows[index[t] * stride + d]
        out[d] = total


@compiled
def scatter_add(rows, stride, index, weight, count, x, width):
    """rows[index[t], :width] += weight[t] * x[:width] for every t < count."""
    done = 0
    while width - done >= 64:
        vectors.scatter_add(floats_after(rows, done), stride, index, weight, count, floats_after(x, done), 64)
        done += 64
    if width - done >= 32:
        vectors.scatter_add(floats_after(rows, done), stride, index, weight, count, floats_after(x, done), 32)
        done += 32
    if width - done >= 16:
        vectors.scatter_add(floats_after(rows, done), stride, index, weight, count, floats_after(x, done), 16)
        done += 16
    for d in range(done, width):
        for t in range(count):
            rows[index[t] * stride + d] += weight[t] * x[d]


@compiled
def gather_dot(out, x, rows, stride, index, count, width):
    """out[t] = x[:width] · rows[index[t], :width] for every t < count."""
    done = 0
    while width - done >= 64:
        vectors.gather_dot(
            out, floats_after(x, done), floats_after(rows, done), stride, index, count, done > 0, 64
        )
        done += 64
    if width - done >= 32:
        vectors.gather_dot(
            out, floats_after(x, done), floats_after(rows, done), stride, index, count, done > 0, 32
        )
        done += 32
    if width - done >= 16:
        vectors.gather_dot(
            out, floats_after(x, done), floats_after(rows, done), stride, index, count, done > 0, 16
        )
        done += 16
    for t in range(count if done < width else 0):
        total = out[t] if done > 0 else ZERO
        for d in range(done, width):
            total += x[d] * rows[index[t] * stride + d]
        out[t] = total
