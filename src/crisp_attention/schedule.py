"""Sparsity as a function of training progress."""

import math
from collections.abc import Callable
from dataclasses import dataclass

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
    "cubic": lambda done: 1 - (1 - done) ** 3,
}


@dataclass(frozen=True)
class Schedule:
    """Sparsity from `initial` to `final` between two fractions of training.

    Parameters
    ----------
    final, initial
        Sparsities in [0, 1): `initial` before `begin`, `final` after `end`.
    shape
        "linear", "cosine", "cubic" (fast first, Zhu & Gupta, arXiv 1710.01878) or "constant" (`final` throughout).
    begin, end
        Fractions of training, in [0, 1].

    Raises
    ------
    ValueError
        For a value out of range.

    Examples
    --------
    >>> schedule = Schedule(final=0.8, shape="linear", begin=0.25, end=0.75)
    >>> [schedule(progress) for progress in (0, 0.5, 1)]
    [0.0, 0.4, 0.8]
    """

    final: float
    initial: float = 0.0
    shape: str = "cubic"
    begin: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        for name in ("initial", "final"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(
                f"begin and end must satisfy 0 <= begin < end <= 1, got {self.begin} and {self.end}"
            )

    def __call__(self, progress: float) -> float:
        """The sparsity at `progress`, a fraction of training in [0, 1]."""
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must be in [0, 1], got {progress}")
        done = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        share = SHAPES[self.shape](done)
        return (1 - share) * self.initial + share * self.final  # exact at both ends
