"""A sparsity schedule for transformers' Trainer."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crisp_attention.models.apply import get_sparsity, set_sparsity
from crisp_attention.schedule import Schedule


class SparsityCallback(TrainerCallback):
    """Sets the model's target sparsity before every training step, by training progress.

    The progress comes from the Trainer's step counter, so a resumed run resumes the schedule. The
    sparsity is added to the Trainer's logs. Raises ValueError when training starts on a model
    without a sparsity to set, or with different sparsities in different layers.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = get_sparsity(kwargs["model"])
        if len(set(now.values())) != 1:
            raise ValueError(
                f"a schedule sets one sparsity for all layers; this model has {sorted(set(now.values())) or 'none'}"
            )
        self._set(state, kwargs["model"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._set(state, kwargs["model"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # the Trainer's history holds a copy of the logs, made before this call
        in_force = max(get_sparsity(kwargs["model"]).values())
        kwargs["logs"]["sparsity"] = state.log_history[-1]["sparsity"] = in_force

    def _set(self, state: TrainerState, model: Any) -> None:
        set_sparsity(model, self.schedule(min(state.global_step / max(state.max_steps, 1), 1.0)))
