"""What was measured, and on which machine."""

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from crisp_attention.bench.contender import CRISP, Absent
from crisp_attention.bench.rounds import Spread, Timed
from crisp_attention.this_machine import processor

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
    """Bytes that a call takes at its peak, on top of its inputs, each contender in a process of its own."""

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


@dataclass(frozen=True)
class Predicted:
    """Times of attention between predicted blocks. `scores`: means of `GraphScores` over heads."""

    method: str
    model: str
    layer: int
    shape: dict[str, Any]
    block_size: int
    scores: dict[str, float]
    predicting_share: float  # of its time
    timed: list[Timed]
    absent: list[Absent]


@dataclass(frozen=True)
class Listed:
    """Seconds that listing the predicted pairs of tokens takes, and how many there are."""

    variant: str
    length: int
    pairs_per_head: float
    share: float  # of all pairs
    seconds: dict[str, float]


@dataclass(frozen=True)
class Hooked:
    """What hooks and the mode add to one forward pass of an attention module, in seconds; empty if it is absent.

    calls: of torch's functions in that pass. step_share: of a training step of the model, all of its layers together.
    """

    model: str
    module: str = ""
    calls: int = 0
    seconds: Spread | None = None
    compiled_seconds: Spread | None = None
    step_seconds: float | None = None
    step_share: float | None = None
    absent: list[Absent] = field(default_factory=list)


@dataclass(frozen=True)
class Pruned:
    """Times of a layer or a model with pruned weights, in the order dense, compressed.

    sparsity: the share of zeros reached. Bytes, as ratios to dense: layer_bytes, of pruned layers in memory,
    saved_layer_bytes, of them in the file, and saved_bytes, of the file.
    """

    subject: str
    size: str  # inputs at a time
    pattern: str
    sparsity: float
    target: float
    layer_bytes: float | None = None
    saved_layer_bytes: float | None = None
    saved_bytes: float | None = None
    timed: list[Timed] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)


@dataclass(frozen=True)
class Situated:
    """Times of a situation, the yardstick first; `part`, `row` and `size` as in `Situation`."""

    part: str
    row: str
    size: str
    method: str
    backward: bool
    timed: list[Timed]
    absent: list[Absent]

    @property
    def yardstick(self) -> Timed | None:
        """What ours is compared with, None if it was not timed."""
        return self.timed[0] if self.timed else None

    @property
    def ratio(self) -> float | None:
        """Ours to the yardstick, None if it was not timed."""
        return next((each.ratio.median for each in self.timed if each.name == CRISP), None)


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
    predicted: list[Predicted] = field(default_factory=list)
    listed: list[Listed] = field(default_factory=list)
    hooked: list[Hooked] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    situated: list[Situated] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"format": FORMAT, **asdict(self)}


PACKAGES = (
    "crisp-attention",
    "torch",
    "numpy",
    "numba",
    "triton",
    "transformers",
    "diffusers",
    "x-transformers",
    "entmax",
)


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, memory, load before the run, versions; None for what is not there."""
    import psutil

    return {
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load_before": psutil.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def described(found: dict[str, Any]) -> str:
    """The machine in one line."""
    where = found["gpu"] or f"{found['processor']}, {found['cores'] or found['logical_cores']} cores"
    return (
        f"{where}, {found['threads']} threads, torch {found['versions']['torch']}, {found['capability']}, "
        f"Python {found['python']}"
    )


def versions() -> dict[str, str | None]:
    """Of the packages that matter, None for those that are not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
