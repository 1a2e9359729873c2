"""The most memory that training takes."""

from typing import Any

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
