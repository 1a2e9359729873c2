"""Timing contenders in turns, and how far apart the times lie."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from crisp_attention.bench.contender import Call

Clock = Callable[[Call], float]
LEAST = 3  # rounds, however long they take


@dataclass(frozen=True)
class Effort:
    """How many rounds there are, or fewer once they have taken `seconds`."""

    rounds: int
    seconds: float


def interleaved(calls: Mapping[str, Call], effort: Effort, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each call in each round. The order moves on by one from round to round."""
    names, times = list(calls), {name: list[float]() for name in calls}
    began = time.perf_counter()
    for turn in range(effort.rounds):
        if turn >= LEAST and time.perf_counter() - began > effort.seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock(calls[name]))
    return times


def warm_up(call: Call) -> None:
    """Call once, for what is compiled, and if that was quick again, for caches and allocators."""
    began = time.perf_counter()
    call()
    if time.perf_counter() - began < 1:
        call()


def clock_of(device: str) -> Clock:
    """Seconds that a call takes on a device: by the wall clock, or by CUDA's events."""
    return _on_cuda if device == "cuda" else _on_cpu


def _on_cpu(call: Call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _on_cuda(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


@dataclass(frozen=True)
class Spread:
    """The median, and the quartiles below and above it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of some numbers, at least one."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True)
class Timed:
    """A contender's times: seconds, and the ratios to the yardstick's time in the same round."""

    name: str
    seconds: Spread
    ratio: Spread
    rounds: int


def compared(times: dict[str, list[float]], yardstick: str) -> list[Timed]:
    """The comparison over rounds; `times`: seconds of every contender, in the order of the rounds."""
    base = times[yardstick]
    return [
        Timed(
            name,
            Spread.of(taken),
            Spread.of([own / dense for own, dense in zip(taken, base, strict=True)]),
            len(taken),
        )
        for name, taken in times.items()
    ]
