"""One cell: who agrees with the reference takes turns in being timed; memory, kernels, and why others are missing."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from crisp_attention.bench.contender import Absent, Call, UnavailableError
from crisp_attention.bench.gpu.cells import Cell
from crisp_attention.bench.gpu.parts import Setting
from crisp_attention.bench.rounds import Effort, Timed, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import first_line
from crisp_attention.kernels.recording import recording

# of the norm of the difference to the reference in float32, as a share of the reference's norm: single rows that keep
# another key than the reference, because sums in another order are other numbers, hardly count
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 2e-2}
NO_TIME, LEAST_LEFT = "no time was left for it", 4.0  # seconds
EFFORT = {False: Effort(30, 1.0), True: Effort(5, 0.2)}


@dataclass(frozen=True)
class Candidate:
    """A contender of a cell.

    check: how far its result is from the reference's, as `difference` says; None: it is what others are compared with.
    prepare: gives what is timed. Both raise UnavailableError, with the reason, where it cannot take part. optional: any
    error only says that it cannot.
    """

    name: str
    prepare: Callable[[], Call]
    check: Callable[[], float] | None = None
    optional: bool = False


@dataclass
class Row:
    """What was found for a cell. `yardstick`: the fastest of the dense contenders, to which ratios are."""

    group: str
    column: str
    direction: str
    dtype: str
    yardstick: str | None = None
    timed: list[Timed] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=dict)  # on top of what was there before the call
    differences: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, list[str]] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)
    failed: list[Absent] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest over the tensors of |found - expected| / |expected|, by the Euclidean norm; infinite if NaN."""
    ratios = [
        float((one.to(other.device).double() - other.double()).norm() / other.double().norm())
        for one, other in zip(found, expected, strict=True)
    ]
    return max(ratios) if all(ratio == ratio for ratio in ratios) else float("inf")


def measure(
    cell: Cell, dtype: str, candidates: Sequence[Candidate], setting: Setting, per_call: int = 1
) -> Row:
    """Check, then time the candidates in turns; a call does the same `per_call` times.

    Raises the error of a device that no longer computes after it.
    """
    row, device = Row(cell.group, cell.column, cell.direction, dtype), setting.device
    calls: dict[str, Call] = {}
    for each in candidates:
        try:
            if setting.left < LEAST_LEFT:
                raise UnavailableError(NO_TIME)
            calls[each.name] = _ready(each, row, device)
        except UnavailableError as reason:
            row.absent.append(Absent(each.name, str(reason)))
        except torch.OutOfMemoryError:
            row.absent.append(Absent(each.name, "needs more memory than the device has"))
        except Exception as error:  # other people's code too: whatever it raises, the others go on
            problems = row.absent if each.optional else row.failed
            problems.append(Absent(each.name, first_line(error)))
            if device == "cuda":
                torch.cuda.synchronize()
        if device == "cuda":
            torch.cuda.empty_cache()
    dense = [each.name for each in candidates if each.name.startswith("dense") and each.name in calls]
    if not dense and setting.left >= LEAST_LEFT:
        row.failed.append(Absent(cell.group, "no dense contender could be timed"))
    if not dense:
        return row
    clock = clock_of(device)
    times = interleaved(calls, EFFORT[setting.quick], lambda call: clock(call) / per_call)
    row.yardstick = min(dense, key=lambda name: sorted(times[name])[len(times[name]) // 2])
    row.timed = compared(times, row.yardstick)
    return row


def _ready(candidate: Candidate, row: Row, device: str) -> Call:
    """What is timed, called before; raises RuntimeError if it computes something else than the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, why a backend cannot: the error says so
        if candidate.check is not None:
            row.differences[candidate.name] = found = candidate.check()
            if not found <= TOLERANCES[row.dtype]:
                raise RuntimeError(
                    f"wrong: it differs from the reference by {found:.1e} of its norm; "
                    f"at most {TOLERANCES[row.dtype]:.0e} is allowed"
                )
        call = candidate.prepare()
        with recording() as used:
            warm_up(call)
        row.kernels[candidate.name] = sorted(used)
        if device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            row.peak_bytes[candidate.name] = torch.cuda.max_memory_allocated() - before
    return call


def unmeasured(cell: Cell, dtype: str) -> Row:
    """The row of a cell for which there was no time."""
    absent = [Absent(name, NO_TIME) for name in cell.contenders]
    return Row(cell.group, cell.column, cell.direction, dtype, absent=absent)
