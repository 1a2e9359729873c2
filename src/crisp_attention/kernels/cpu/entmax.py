"""α-entmax for any α in (1, 2]: its threshold τ by Newton's method, its weights and its gradients, one of α among them.

With z = (α - 1) (score - largest), the weights are max(z - τ, 0) ** (1 / (α - 1)) (arXiv 1909.00015).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.native import compiled, floats_at
from crisp_attention.kernels.cpu.selection import EVERYWHERE, INFINITY, NEWTON, padded, spoiled
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INT,
    INTS,
    LANES,
    POINTER,
    compact,
    exponential,
    fma,
    load,
    reduced,
    splat,
    store,
    survey,
)

NAN, ZERO, ONE = np.float32(np.nan), np.float32(0), np.float32(1)
# ln(1 + f) - f + f² / 2, divided by f³, highest power first (Cephes)
LOGARITHM = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SMALLEST = 2.0**-126
HALF = LANES // 2
DOUBLES = ir.VectorType(ir.DoubleType(), HALF)


def _constant(value: float) -> Any:
    return ir.Constant(FLOATS, [value] * LANES)


def _logarithm(builder: Any, x: Any) -> Any:
    """ln x of normal positive numbers."""
    bits = builder.bitcast(x, INTS)
    part = builder.and_(bits, ir.Constant(INTS, [0x7FFFFF] * LANES))
    part = builder.bitcast(builder.or_(part, ir.Constant(INTS, [0x3F800000] * LANES)), FLOATS)
    exponent = builder.lshr(bits, ir.Constant(INTS, [23] * LANES))
    exponent = builder.sitofp(builder.sub(exponent, ir.Constant(INTS, [127] * LANES)), FLOATS)
    large = builder.fcmp_ordered(">", part, _constant(2**0.5))
    part = builder.select(large, builder.fmul(part, _constant(0.5)), part)
    exponent = builder.select(large, builder.fadd(exponent, _constant(1.0)), exponent)
    f = builder.fsub(part, _constant(1.0))
    square, total = builder.fmul(f, f), _constant(LOGARITHM[0])
    for coefficient in LOGARITHM[1:]:
        total = fma(builder, total, f, _constant(coefficient))
    total = builder.fmul(builder.fmul(total, f), square)
    total = fma(builder, exponent, _constant(-2.12194440e-4), total)
    total = builder.fadd(f, fma(builder, square, _constant(-0.5), total))
    return fma(builder, exponent, _constant(0.693359375), total)


def _sums(builder: Any, count: Any, number: int, each: Callable[[Any, Any], list[Any]]) -> list[Any]:
    """Sums over t < count of the `number` vectors that `each` gives for a place and the lanes before the end."""
    totals = [cgutils.alloca_once_value(builder, _constant(0.0)) for _ in range(number)]
    lane = ir.Constant(INTS, list(range(LANES)))
    with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
        left = splat(builder, builder.trunc(builder.sub(count, t), INT))
        inside = builder.icmp_signed("<", lane, left)
        for total, value in zip(totals, each(t, inside), strict=True):
            builder.store(builder.fadd(builder.load(total), value), total)
    return [reduced(builder, builder.load(total), builder.fadd) for total in totals]


def _add_wide(builder: Any, total: Any, *factors: Any, less: Any = None) -> None:
    """Add products of vectors to eight sums in float64, the last factor `less` a number that is as well."""
    for first in (0, HALF):
        places = ir.Constant(ir.VectorType(INT, HALF), list(range(first, first + HALF)))
        product, *others = (builder.fpext(builder.shuffle_vector(x, x, places), DOUBLES) for x in factors)
        for i, each in enumerate(others):
            last = less is not None and i == len(others) - 1
            product = builder.fmul(product, builder.fsub(each, less) if last else each)
        builder.store(builder.fadd(builder.load(total), product), total)


def _excess(builder: Any, scores: Any, t: Any, inside: Any, numbers: list[Any]) -> list[Any]:
    """z - τ and its power 1 / (α - 1) - 1, both 0 where τ is larger."""
    high, factor, tau, power = numbers
    z = builder.fmul(builder.fsub(load(builder, builder.gep(scores, [t])), high), factor)
    excess = builder.fsub(z, tau)
    inside = builder.and_(inside, builder.fcmp_ordered(">=", excess, _constant(SMALLEST)))
    logarithm = _logarithm(builder, builder.select(inside, excess, _constant(1.0)))
    powers = exponential(builder, builder.fmul(power, logarithm))
    return [builder.select(inside, each, _constant(0.0)) for each in (excess, powers)]


@intrinsic
def _sums_above(typing, scores, count, high, factor, tau, power):
    """The sums of the weights and of their power 2 - α, where (score - high) * factor = z."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, count, *numbers = arguments
        numbers = [splat(builder, each) for each in numbers]

        def each(t: Any, inside: Any) -> list[Any]:
            excess, powers = _excess(builder, scores, t, inside, numbers)
            return [builder.fmul(excess, powers), powers]

        return context.make_tuple(builder, signature.return_type, _sums(builder, count, 2, each))

    kinds = POINTER, types.int64, *[types.float32] * 4
    return types.Tuple([types.float32] * 2)(*kinds), code


@intrinsic
def _weights(typing, scores, count, high, factor, tau, power):
    """The weights, before they are divided by their sum, in place of the scores; returns the sum."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        scores, count, *numbers = arguments
        numbers = [splat(builder, each) for each in numbers]

        def each(t: Any, inside: Any) -> list[Any]:
            weights = builder.fmul(*_excess(builder, scores, t, inside, numbers))
            store(builder, weights, builder.gep(scores, [t]))
            return [weights]

        return _sums(builder, count, 1, each)[0]

    return types.float32(POINTER, types.int64, *[types.float32] * 4), code


@intrinsic
def _slopes(typing, slope, weight, grad, count, power):
    """slope[t] = weight[t] ** power; the sums of it, and of it * grad, in float64."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slope, weight, grad, count, power = arguments
        power, zero = splat(builder, power), _constant(0.0)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(DOUBLES, None)) for _ in range(2)]

        def each(t: Any, inside: Any) -> list[Any]:
            share = load(builder, builder.gep(weight, [t]))
            some = builder.and_(inside, builder.fcmp_unordered(">=", share, _constant(SMALLEST)))
            logarithm = _logarithm(builder, builder.select(some, share, _constant(1.0)))
            own = builder.select(some, exponential(builder, builder.fmul(power, logarithm)), zero)
            store(builder, own, builder.gep(slope, [t]))
            _add_wide(builder, totals[0], own)
            rise = builder.select(some, load(builder, builder.gep(grad, [t])), zero)
            _add_wide(builder, totals[1], own, rise)
            return []

        _sums(builder, count, 0, each)
        sums = [reduced(builder, builder.load(total), builder.fadd) for total in totals]
        return context.make_tuple(builder, signature.return_type, sums)

    kinds = POINTER, POINTER, POINTER, types.int64, types.float32
    return types.Tuple([types.float64] * 2)(*kinds), code


@intrinsic
def _rise_of_exponent(typing, z, slope, weight, grad, count, mean, factor):
    """The sum of (slope * z - factor * weight * ln weight) * (grad - mean), which is in float64."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        z, slope, weight, grad, count, mean, factor = arguments
        factor = splat(builder, factor)
        mean = builder.insert_element(ir.Constant(DOUBLES, ir.Undefined), mean, INT(0))
        mean = builder.shuffle_vector(mean, mean, ir.Constant(ir.VectorType(INT, HALF), None))
        total = cgutils.alloca_once_value(builder, ir.Constant(DOUBLES, None))

        def each(t: Any, inside: Any) -> list[Any]:
            share = load(builder, builder.gep(weight, [t]))
            some = builder.and_(inside, builder.fcmp_unordered(">=", share, _constant(SMALLEST)))
            share = builder.select(some, share, _constant(0.0))
            logarithm = _logarithm(builder, builder.select(some, share, _constant(1.0)))
            own, place = (load(builder, builder.gep(each, [t])) for each in (slope, z))
            part = builder.fmul(builder.fmul(factor, logarithm), share)
            part = builder.select(some, builder.fsub(builder.fmul(own, place), part), _constant(0.0))
            rise = builder.select(some, load(builder, builder.gep(grad, [t])), _constant(0.0))
            _add_wide(builder, total, part, rise, less=mean)
            return []

        _sums(builder, count, 0, each)
        return reduced(builder, builder.load(total), builder.fadd)

    return types.float64(POINTER, POINTER, POINTER, POINTER, types.int64, types.float64, types.float32), code


@compiled
def exponent_of(job, head):
    """α of a head."""
    return floats_at(job.own)[head] if job.own else np.float32(job.level)


@compiled
def choose_entmax(alpha, row, n, index, kept, norm):
    """As `forward.choose`; `norm` holds the largest score and τ."""
    columns = padded(n)
    low, high, seen, broken, _, _ = survey(row, columns)
    spoilt = spoiled(high, broken)
    norm[0], norm[1] = high, NAN if spoilt else ZERO
    if seen == 0 or spoilt:
        return 0, INFINITY, EVERYWHERE
    factor = alpha - ONE
    count = compact(row, columns, max(high - ONE / factor, low), EVERYWHERE, index, kept)
    norm[1] = _tau(kept, count, high, factor)
    # a little below τ: what lies between weighs nothing
    edge = high + norm[1] / factor
    threshold = max(edge - (abs(high) + abs(edge) + ONE) * np.float32(1e-6), low)
    return compact(row, columns, threshold, EVERYWHERE, index, kept), threshold, EVERYWHERE


@compiled
def _tau(kept, count, high, factor):
    """By Newton's method on (the sum of weights) ** (α - 1), nearly a straight line, which is convex: from the left."""
    tau, power = np.float32(-1), ONE / factor - ONE
    for _ in range(NEWTON):
        total, slope = _sums_above(kept, count, high, factor, tau, power)
        new = tau + np.float32(total / slope * (1 - np.float64(total) ** -np.float64(factor)))
        if not new > tau:
            return new
        tau = new
    return tau


@compiled
def weigh_entmax(alpha, kept, count, norm):
    """Weights of the kept scores, in place."""
    factor = alpha - ONE
    share = ONE / _weights(kept, count, norm[0], factor, norm[1], ONE / factor - ONE) if count > 0 else ZERO
    for t in range(count):
        kept[t] *= share


@compiled
def entmax_gradient(alpha, z, weight, grad, slope, count):
    """The gradient of the kept scores, in place of that of their weights; returns that of α. `slope` is overwritten."""
    total, risen = _slopes(slope, weight, grad, count, np.float32(2) - alpha)
    mean, factor = risen / total if total > 0 else 0.0, alpha - ONE
    own = _rise_of_exponent(z, slope, weight, grad, count, mean, factor) / np.float64(factor) ** 2
    for t in range(count):
        grad[t] = slope[t] * (grad[t] - np.float32(mean))
    return own
