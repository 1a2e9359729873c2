"""The parts of a run on a GPU, as values. Imports nothing heavy."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Emit = Callable[[dict[str, Any]], None]  # takes what was found, as JSON keeps it
TOTAL, QUICK_TOTAL = 530.0, 57.0  # seconds of a whole run, and of a quick one


@dataclass(frozen=True)
class Part:
    """A part of a run. `run`: "module:function", called with a `Setting` and what takes its rows.

    seconds, quick: how long it may take at least, and in a quick run; 0: it has no part in one.
    """

    name: str
    what: str
    run: str
    seconds: float
    quick: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What a part is told. `began`: by `time.monotonic`, from which the `seconds` count that it has."""

    seconds: float
    quick: bool = False
    device: str = "cuda"
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left of its time."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def late(self) -> bool:
        """Whether too little is left to begin something that may take a while."""
        return self.left < max(self.seconds / 4, 5)


PARTS = (
    Part("tests", "the tests that run on CUDA devices", f"{__package__}.tests:run", 120, 17),
    Part("attention", "attention in bfloat16", f"{__package__}.attention:run_bfloat16", 110, 22),
    Part("float32", "attention in float32", f"{__package__}.attention:run_float32", 110),
    Part("causal", "causal attention, grouped and wide heads", f"{__package__}.attention:run_causal", 45),
    Part("minilm", "a model of MiniLM's shape", f"{__package__}.models:run_minilm", 35),
    Part("decoder", "a decoder of a billion parameters", f"{__package__}.models:run_decoder", 45),
    Part("layers", "pruned layers", f"{__package__}.layers:run", 30, 18),
    Part("flex", "FlexAttention's search for tiles", f"{__package__}.attention:run_flex", 35),
)


def limits(parts: tuple[Part, ...], quick: bool, spent: float) -> float:
    """Seconds that the first of these parts has: all but what was spent and what the others need."""
    needs = [each.quick if quick else each.seconds for each in parts[1:]]
    return (QUICK_TOTAL if quick else TOTAL) - spent - sum(needs)
