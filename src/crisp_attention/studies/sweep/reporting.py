"""What a run tells the sweep while it works."""

import time
from multiprocessing.connection import Connection
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SECONDS = 0.5


class Reporter(TrainerCallback):
    """Sends ("step", done, all) now and then, and ("accuracy", step, all, validation accuracy) when evaluated."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self._sent = pipe, 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if time.monotonic() - self._sent > SECONDS:
            self._sent = time.monotonic()
            self.pipe.send(("step", state.global_step, state.max_steps))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pipe.send(("accuracy", state.global_step, state.max_steps, kwargs["metrics"]["eval_accuracy"]))
