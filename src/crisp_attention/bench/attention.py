"""Measuring attention alone: which contenders agree with the reference, and how long each takes."""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import DENSE, Absent, Call, Contender, UnavailableError, crisp, dense
from crisp_attention.bench.limit import arithmetic, products
from crisp_attention.bench.methods import achieved_sparsity
from crisp_attention.bench.peers import FLEX
from crisp_attention.bench.results import Attention
from crisp_attention.bench.roster import roster
from crisp_attention.bench.rounds import Effort, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import first_line
from crisp_attention.methods.method import Method

LENGTH = 512
TOLERANCE = 1e-3  # of the largest entry: float32, sums in another order
QUICK = {FLEX: "left out of a quick measurement: compiling takes half a minute"}


def disagreeing(method: Method, shape: Shape, backward: bool, skip: dict[str, str]) -> dict[str, str]:
    """Contenders that disagree with our reference on a small float32 case, with the reason, by name.

    Compared are outputs or, with `backward`, gradients. A contender that cannot compute them counts too.
    """
    small = replace(shape, batch=1, heads=2, length=LENGTH, dtype="float32")
    expected = _computed(crisp(method, "reference"), small, backward)
    found, absent = roster(method, small, skip)
    reasons = {each.name: each.reason for each in absent}
    for contender in found:
        try:
            computed = _computed(contender, small, backward)
        except UnavailableError as reason:
            reasons[contender.name] = str(reason)
            continue
        except Exception as error:  # other people's code: whatever it raises, the run continues without it
            reasons[contender.name] = f"fails: {first_line(error)}"
            continue
        if (worst := _difference(computed, expected)) > TOLERANCE:
            what = "gradients" if backward else "output"
            reasons[contender.name] = (
                f"wrong: its {what} differ from the reference's by {worst:.1e} of the largest entry, "
                f"at most {TOLERANCE:.0e} is allowed"
            )
    return reasons


def _computed(contender: Contender, shape: Shape, backward: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(0)  # for what is drawn at random
    return contender.call(shape, backward)()


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    ratios = [
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(found, expected, strict=True)
    ]
    return max(ratios) if all(ratio == ratio for ratio in ratios) else float("inf")


def measure_attention(
    cases: list[Case], effort: Effort, rate: float, quick: bool, told: Callable[[str], None]
) -> list[Attention]:
    """Check, then time every case; `rate`: of matrix products; `told` is called with the next case."""
    found: list[Attention] = []
    for case in cases:
        direction = "forward + backward" if case.backward else "forward"
        told(f"{case.method.name}, {case.shape.length:,} tokens, {direction}")
        wrong = disagreeing(case.method, case.shape, case.backward, QUICK if quick else {})
        found.append(_measured(case, effort, rate, wrong))
    return found


def _measured(case: Case, effort: Effort, rate: float, wrong: dict[str, str]) -> Attention:
    contenders, absent = roster(case.method, case.shape, wrong)
    calls: dict[str, Call] = {}
    for contender in [dense(), *contenders]:
        try:
            call = contender.call(case.shape, case.backward)
            warm_up(call)
            calls[contender.name] = call
        except (RuntimeError, MemoryError, NotImplementedError) as error:
            if contender.name == DENSE:
                raise
            absent.append(Absent(contender.name, f"fails: {first_line(error)}"))
    times = interleaved(calls, effort, clock_of(case.shape.device))
    sparsity = achieved_sparsity(case.method, case.shape)
    return Attention(
        method=case.method.spec,
        name=case.method.name,
        shape=asdict(case.shape),
        backward=case.backward,
        achieved_sparsity=sparsity,
        arithmetic=arithmetic(case, 1 - sparsity),
        limit_seconds=products(case, 1 - sparsity) * case.shape.products / rate,
        timed=compared(times, DENSE),
        absent=absent,
    )
