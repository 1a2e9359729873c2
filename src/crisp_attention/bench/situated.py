"""Timing situations: each against its yardstick, after a comparison with the reference."""

from collections.abc import Callable

from torch import Tensor

from crisp_attention.bench.contender import CRISP, Absent, Call, UnavailableError
from crisp_attention.bench.results import Situated
from crisp_attention.bench.rounds import Effort, Timed, clock_of, compared, interleaved, warm_up
from crisp_attention.bench.situation import Situation
from crisp_attention.errors import CheckpointError, first_line
from crisp_attention.kernels.dispatch import REFERENCE

AGREEMENT = 5e-3  # relative, of norms: a near tie in a few rows of thousands may be decided either way
LEAST_SECONDS = 0.005  # that are timed at a time: shorter calls are repeated
MOST_REPEATS = 50


def measure_situations(
    planned: list[Situation], effort: Effort, told: Callable[[str], None]
) -> list[Situated]:
    """Compare each with the reference, then time it, forward and with gradients, on the CPU."""
    found = []
    for each in planned:
        for backward in (False, True)[: 1 + each.gradients]:
            told(f"{each.row}, {each.size}, {'forward + backward' if backward else 'forward'}")
            found.append(_measured(each, backward, effort))
    return found


def _measured(asked: Situation, backward: bool, effort: Effort) -> Situated:
    timed, absent = [], []
    try:
        small = asked.small
        expected = small.ours(REFERENCE).compared(backward)
        if problem := disagreement(small.ours().compared(backward), expected):
            raise UnavailableError(problem)
        calls: dict[str, Call] = {name: each.call(backward) for name, each in asked.contenders().items()}
        timed = timed_in_turns(calls, effort)
    except (CheckpointError, UnavailableError) as reason:
        absent.append(Absent(CRISP, str(reason)))
    except (RuntimeError, MemoryError) as error:
        absent.append(Absent(CRISP, f"fails: {first_line(error)}"))
    return Situated(asked.part, asked.row, asked.size, asked.method.spec, backward, timed, absent)


def disagreement(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str | None:
    """How far results, outputs or gradients, are from the reference's; None if they agree."""
    away = [float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]
    if all(each <= AGREEMENT for each in away):  # so that NaN is not agreement
        return None
    return f"wrong: differs from the reference by {max(away):.1e} of the norm; at most {AGREEMENT:.0e} is allowed"


def timed_in_turns(calls: dict[str, Call], effort: Effort) -> list[Timed]:
    """Times of one call or, where it is short, of several at a time; the first of them is the yardstick."""
    clock, yardstick = clock_of("cpu"), next(iter(calls))
    for call in calls.values():
        warm_up(call)
    repeats = min(MOST_REPEATS, max(1, round(LEAST_SECONDS / clock(calls[yardstick]))))

    def several(call: Call) -> float:
        def repeated() -> None:
            for _ in range(repeats):
                call()

        return clock(repeated) / repeats

    return compared(interleaved(calls, effort, several), yardstick)
