"""Powers of scores above a threshold, as vector code: weights of α-entmax, and what their gradients are made of.

With z = (score - high) * factor and x = max(z - τ, 0), a weight is x ** (power + 1) and its slope x ** power, both 0
where x is. A few whole powers are products, any other is 2 ** (power * log2 x). Arrays are as long as whole vectors.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from crisp_attention.kernels.cpu.counts import DOUBLES, halves
from crisp_attention.kernels.cpu.vectors import (
    FLOATS,
    INTS,
    LANES,
    POINTER,
    constant,
    fma,
    load,
    reduced,
    rounded,
    splat,
    store,
)

# powers that are products (α of 1.5, 4/3, 1.25, 1.2 and 1.1); any other is ANY
WHOLE, ANY = (1, 2, 3, 4, 9), 0
# log2(1 + f) / f where 1 + f lies between the square roots of 1/2 and 2, and 2 ** r where |r| <= 1/2, highest power
# first: the largest relative error, as small as it gets, is 2.6e-8 and 1.9e-9
LOGARITHM = (
    0.1258368985,
    -0.2072696872,
    0.2157156234,
    -0.2389448308,
    0.2879162473,
    -0.3607036824,
    0.4809106430,
    -0.7213473468,
    1.4426950040,
)
EXPONENTIAL = (
    1.534581157e-4,
    1.339993122e-3,
    9.618488959e-3,
    5.550328777e-2,
    0.2402264689,
    0.6931472057,
    1.0,
)
LN2 = 0.6931471805599453
ROOT = 0x3F3504F3  # the bits of the square root of 1/2
SMALLEST, LEAST = 2.0**-126, -120.0
NUMBERS = [types.float32] * 4


def _repeated(value: int) -> Any:
    return ir.Constant(INTS, [value] * LANES)


def _polynomial(builder: Any, x: Any, coefficients: tuple[float, ...]) -> Any:
    total = constant(coefficients[0])
    for each in coefficients[1:]:
        total = fma(builder, total, x, constant(each))
    return total


def _logarithm(builder: Any, x: Any) -> Any:
    """log2 x of normal positive numbers, something finite of 0."""
    bits = builder.bitcast(x, INTS)
    exponent = builder.ashr(builder.sub(bits, _repeated(ROOT)), _repeated(23))
    part = builder.bitcast(builder.sub(bits, builder.shl(exponent, _repeated(23))), FLOATS)
    f = builder.fsub(part, constant(1.0))
    return fma(builder, f, _polynomial(builder, f, LOGARITHM), builder.sitofp(exponent, FLOATS))


def _exponential(builder: Any, x: Any) -> Any:
    """2 ** x of numbers from LEAST to 100."""
    whole = rounded(builder, x)
    rest = _polynomial(builder, builder.fsub(x, whole), EXPONENTIAL)
    exponent = builder.shl(builder.fptosi(whole, INTS), _repeated(23))
    return builder.bitcast(builder.add(builder.bitcast(rest, INTS), exponent), FLOATS)


def _product(builder: Any, x: Any, power: int) -> Any:
    if power == 1:
        return x
    root = _product(builder, x, power // 2)
    square = builder.fmul(root, root)
    return builder.fmul(square, x) if power % 2 else square


class _Excess:
    """z and x of 16 scores, and what depends on them."""

    def __init__(self, builder: Any, scores: Any, kind: int, numbers: list[Any]) -> None:
        high, factor, tau, power = numbers
        self.builder = builder
        self.z = builder.fmul(builder.fsub(load(builder, scores), high), factor)
        excess = builder.fsub(self.z, tau)
        self.some = builder.fcmp_ordered(">=", excess, constant(SMALLEST))
        self.x = builder.select(self.some, excess, constant(0.0))
        if kind == ANY:
            self.logarithm = _logarithm(builder, self.x)
            exponent = builder.fmul(power, self.logarithm)
            self.some = builder.and_(self.some, builder.fcmp_ordered(">=", exponent, constant(LEAST)))
            self.slope = self._or_zero(_exponential(builder, exponent))
        else:
            self.slope = _product(builder, self.x, kind)
        self.weight = builder.fmul(self.x, self.slope)

    def _or_zero(self, x: Any) -> Any:
        return self.builder.select(self.some, x, constant(0.0))

    @property
    def rise(self) -> Any:
        """slope * (z - x ln x), where power is ANY."""
        builder = self.builder
        part = builder.fmul(self.x, builder.fmul(self.logarithm, constant(LN2)))
        return self._or_zero(builder.fmul(self.slope, builder.fsub(self.z, part)))


def _over(builder: Any, count: Any, each: Callable[[Any], None]) -> None:
    with cgutils.for_range_slice(builder, count.type(0), count, count.type(LANES), count.type) as (t, _):
        each(t)


def _by_kind(builder: Any, kind: Any, build: Callable[[int], None]) -> None:
    """Code for every kind of power, of which `kind` chooses one."""
    blocks = {each: builder.append_basic_block(f"power_{each}") for each in (*WHOLE, ANY)}
    done = builder.append_basic_block("done")
    switch = builder.switch(kind, blocks[ANY])
    for each, block in blocks.items():
        if each != ANY:
            switch.add_case(kind.type(each), block)
        builder.position_at_end(block)
        build(each)
        builder.branch(done)
    builder.position_at_end(done)


def _add(builder: Any, total: Any, value: Any) -> None:
    builder.store(builder.fadd(builder.load(total), value), total)


@intrinsic
def sums_above(typing, kind, scores, count, high, factor, tau, power):
    """The sums of the weights and of their slopes; `kind` is a power of WHOLE, or ANY."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, scores, count, *numbers = arguments
        numbers = [splat(builder, each) for each in numbers]
        totals = [cgutils.alloca_once_value(builder, constant(0.0)) for _ in range(2)]

        def build(kind: int) -> None:
            def each(t: Any) -> None:
                excess = _Excess(builder, builder.gep(scores, [t]), kind, numbers)
                for total, value in zip(totals, (excess.weight, excess.slope), strict=True):
                    _add(builder, total, value)

            _over(builder, count, each)

        _by_kind(builder, kind, build)
        sums = [reduced(builder, builder.load(total), builder.fadd) for total in totals]
        return context.make_tuple(builder, signature.return_type, sums)

    kinds = types.int64, POINTER, types.int64, *NUMBERS
    return types.Tuple([types.float32] * 2)(*kinds), code


def _weights(builder: Any, arguments: Any, slope: Any = None, rise: Any = None) -> Any:
    kind, scores, count, *numbers = arguments
    numbers = [splat(builder, each) for each in numbers]
    total = cgutils.alloca_once_value(builder, constant(0.0))

    def build(kind: int) -> None:
        def each(t: Any) -> None:
            at = builder.gep(scores, [t])
            excess = _Excess(builder, at, kind, numbers)
            store(builder, excess.weight, at)
            _add(builder, total, excess.weight)
            if slope is not None:
                store(builder, excess.slope, builder.gep(slope, [t]))
                if kind == ANY:
                    store(builder, excess.rise, builder.gep(rise, [t]))

        _over(builder, count, each)

    _by_kind(builder, kind, build)
    return reduced(builder, builder.load(total), builder.fadd)


@intrinsic
def weights(typing, kind, scores, count, high, factor, tau, power):
    """The weights in place of the scores; returns their sum."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        return _weights(builder, arguments)

    return types.float32(types.int64, POINTER, types.int64, *NUMBERS), code


@intrinsic
def weights_and_slopes(typing, kind, scores, count, high, factor, tau, power, slope, rise):
    """`weights`, and their slopes; `rise` becomes slope * (z - x ln x) if the kind is ANY, and is left alone if not."""

    def code(context: Any, builder: Any, _types: Any, arguments: Any) -> Any:
        *given, slope, rise = arguments
        return _weights(builder, given, slope, rise)

    return types.float32(types.int64, POINTER, types.int64, *NUMBERS, POINTER, POINTER), code


@intrinsic
def wide_sums(typing, slope, rise, grad, count):
    """The sums of slope, slope * grad, rise and rise * grad in float64; `grad` counts where the slope is not 0."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *arrays, count = arguments
        totals = [cgutils.alloca_once_value(builder, ir.Constant(DOUBLES, None)) for _ in range(4)]

        def each(t: Any) -> None:
            slope, rise, grad = (load(builder, builder.gep(array, [t])) for array in arrays)
            some = builder.fcmp_unordered(">", slope, constant(0.0))
            grad = builder.select(some, grad, constant(0.0))
            for own, own_rise, along in zip(*(halves(builder, x) for x in (slope, rise, grad)), strict=True):
                values = own, builder.fmul(own, along), own_rise, builder.fmul(own_rise, along)
                for total, value in zip(totals, values, strict=True):
                    _add(builder, total, value)

        _over(builder, count, each)
        sums = [reduced(builder, builder.load(total), builder.fadd) for total in totals]
        return context.make_tuple(builder, signature.return_type, sums)

    kinds = POINTER, POINTER, POINTER, types.int64
    return types.Tuple([types.float64] * 4)(*kinds), code
