"""The middle and the quartiles of repeated measurements."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
    """What the rounds say; `times`: seconds of every contender, in the order of the rounds."""
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
