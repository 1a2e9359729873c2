"""What a run measured, as it is kept in bench.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from crisp_attention.bench.contender import Absent
from crisp_attention.bench.spread import Timed

FORMAT = 1


@dataclass(frozen=True)
class Attention:
    """Times of one method at one shape. `shape` as in `Shape`; limits: see `limit.py`, None without SDPA's time."""

    method: str
    name: str  # of the method, without its numbers
    shape: dict[str, Any]
    backward: bool
    achieved_sparsity: float
    arithmetic: float  # the least work, as a ratio to dense
    limit_seconds: float  # the same at the machine's matrix rate
    timed: list[Timed]
    absent: list[Absent]


@dataclass(frozen=True)
class Step:
    """Times of a whole fine-tuning step (forward, backward, optimizer) of a model."""

    model: str
    method: str
    batch: int
    length: int
    dtype: str
    device: str
    timed: list[Timed]
    absent: list[Absent]


@dataclass(frozen=True)
class Memory:
    """Bytes that a call takes beside its inputs, at the peak, each contender in a process of its own."""

    method: str
    shape: dict[str, Any]
    backward: bool
    peak_bytes: dict[str, int]
    ratio: float | None
    counter: str  # what counted
    absent: list[Absent]


@dataclass(frozen=True)
class FirstCall:
    """Seconds of a method's first calls in a fresh process, the caches on disk empty or filled, and of later ones."""

    method: str
    seconds: dict[str, dict[str, float]]  # "empty" or "filled" -> "forward", "backward", "later"
    absent: list[Absent]


@dataclass
class Results:
    """All of a run; parts that were not asked for are empty."""

    command: list[str]
    options: dict[str, Any]
    machine: dict[str, Any]
    matrix_rate: dict[str, float] = field(default_factory=dict)  # by dtype, operations a second
    attention: list[Attention] = field(default_factory=list)
    step: list[Step] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    first_call: list[FirstCall] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"format": FORMAT, **asdict(self)}
