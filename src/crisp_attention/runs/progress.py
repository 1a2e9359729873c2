"""What a run shows while it works: one moving line on a terminal, elsewhere a line per evaluation."""

import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crisp_attention.runs.task import Metric


class RunProgress(TrainerCallback):
    """Follows the Trainer through training and evaluation. A context manager: it gives the terminal back.

    metric: what is shown of an evaluation.
    phase: what the next predictions are for, in the words next to their bar.
    """

    def __init__(self, console: Console, metric: Metric) -> None:
        self.console, self.metric = console, metric
        self.phase = ""
        self._loss = ""
        self._began = (0.0, 0)  # seconds, step
        self._training: TaskID | None = None
        self._predicting: TaskID | None = None
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "RunProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.phase = "validation"
        self._began = (time.perf_counter(), state.global_step)
        self._training = self._bars.add_task(
            "training", total=state.max_steps, completed=state.global_step, info=""
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._training is not None:
            info = f"epoch {state.epoch or 0:.1f} of {args.num_train_epochs:g}{self._loss}"
            self._bars.update(self._training, completed=state.global_step, info=info)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if "loss" in kwargs["logs"]:
            self._loss = f", loss {float(kwargs['logs']['loss']):.3f}"

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._predicting is None:
            self._predicting = self._bars.add_task(self.phase, total=len(kwargs["eval_dataloader"]), info="")
        self._bars.advance(self._predicting)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_prediction()
        seen = kwargs["metrics"]
        self.console.print(
            f"epoch {state.epoch or 0:g} of {args.num_train_epochs:g}, "
            f"step {state.global_step:,} of {state.max_steps:,}{self._loss}, "
            f"validation loss {seen['eval_loss']:.3f}, {self.metric.title} "
            f"{self.metric.shown(seen[f'eval_{self.metric.name}'])}{self._time(state)}",
            soft_wrap=True,
            highlight=False,
        )

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        self._end_prediction()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._training is not None:
            self._bars.remove_task(self._training)
            self._training = None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            name = Path(state.best_model_checkpoint).name
            self.console.print(
                f"loaded {name}, the best by {args.metric_for_best_model}", soft_wrap=True, highlight=False
            )

    def _end_prediction(self) -> None:
        if self._predicting is not None:
            self._bars.remove_task(self._predicting)
            self._predicting = None

    def _time(self, state: TrainerState) -> str:
        began, first_step = self._began
        passed = time.perf_counter() - began
        left = passed * (state.max_steps - state.global_step) / max(state.global_step - first_step, 1)
        return f" ({_clock(passed)} elapsed, {_clock(left)} left)"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
