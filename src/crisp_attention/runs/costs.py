"""The costs of a run: time per step, peak memory, and the kernels that computed its attention."""

import time
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from crisp_attention.peak_memory import forget_peak, peak_memory


class PeakMemory(TrainerCallback, ExportableState):
    """The peak from the beginning of training to its last step, in bytes; checkpoints hold it.

    Neither what comes before nor what comes after, such as measuring the attention, counts if `of_training`;
    on systems that only know the peak of the whole process, what comes before does.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.of_training = True

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"peak": self.peak}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks
        self.peak = states.get(type(self).__name__, {}).get("attributes", {}).get("peak", 0)
        self.of_training = forget_peak(args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.peak = max(self.peak, peak_memory(args.device))


class StepTimes(TrainerCallback, ExportableState):
    """Wall-clock seconds of every training step, evaluation and saving excluded.

    Checkpoints hold them, so that a resumed run counts the steps before its interruption too.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"seconds": list(self.seconds)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks
        earlier = states.get(type(self).__name__, {})
        self.seconds = list(earlier.get("attributes", {}).get("seconds", []))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = _now(args.device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds.append(_now(args.device) - self._started)

    def median(self) -> float:
        """Median seconds per step; the first ones, often slower, do not affect it."""
        return median(self.seconds)

    def total(self) -> float:
        """Seconds of all steps together."""
        return sum(self.seconds)


class KernelsUsed(TrainerCallback, ExportableState):
    """The names of the kernels that computed a run's attention, as `recording` collects them in `used`.

    Checkpoints hold them, so that a resumed run knows those of the steps before its interruption too.
    """

    def __init__(self) -> None:
        self.used: set[str] = set()

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"used": sorted(self.used)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states: Any = state.stateful_callbacks
        self.used.update(states.get(type(self).__name__, {}).get("attributes", {}).get("used", []))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
