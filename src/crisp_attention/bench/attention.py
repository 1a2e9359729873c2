"""The part `attention`: one call of each contender, over methods, lengths, forward and backward."""

from collections.abc import Callable
from dataclasses import asdict

from crisp_attention.bench.agreement import disagreeing
from crisp_attention.bench.case import Case
from crisp_attention.bench.contender import Absent, Call
from crisp_attention.bench.flex import FLEX
from crisp_attention.bench.limit import arithmetic, products
from crisp_attention.bench.methods import achieved_sparsity
from crisp_attention.bench.ours import DENSE, dense
from crisp_attention.bench.results import Attention
from crisp_attention.bench.roster import roster
from crisp_attention.bench.rounds import Effort, clock_of, interleaved, warm_up
from crisp_attention.bench.spread import compared
from crisp_attention.errors import first_line

QUICK = {FLEX: "left out by --quick: compiling takes half a minute"}


def measure_attention(
    cases: list[Case], effort: Effort, rate: float, quick: bool, told: Callable[[str], None]
) -> list[Attention]:
    """Check, then time every case; `rate`: of matrix products; `told` hears which case is next."""
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
