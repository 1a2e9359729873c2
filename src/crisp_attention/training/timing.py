"""What a run costs: time per step, peak memory."""

import resource
import sys
import time
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


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
        self._started = _now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds.append(_now() - self._started)

    def median(self) -> float:
        return median(self.seconds)

    def total(self) -> float:
        return sum(self.seconds)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> int:
    """Bytes: of the CUDA device if there is one, else the largest resident size of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
