"""A sparsity schedule for transformers' Trainer."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.optimization import GreedyLR
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from crisp_attention.models.sparse_model import SparseModel, set_sparsity
from crisp_attention.models.transformers.adapters import recorded_at
from crisp_attention.schedule import Schedule

SAME = 1e-9  # sparsities that differ by less keep the same keys


class SparsityCallback(TrainerCallback):
    """Sets the model's target sparsity before every training step, by training progress.

    Step i of N trains at `schedule(i / N)`, so the last one at the final sparsity. All that follows a step,
    until the next one begins, is at the sparsity of that step: its log, which gets the entry `sparsity`, its
    evaluation, its checkpoint and the configuration saved with it. The progress is that of the Trainer's step
    counter, so a resumed run resumes the schedule.

    Evaluations at unequal sparsities are not compared: until the final sparsity is reached, the Trainer's
    record of the best evaluation is cleared after each one. So `load_best_model_at_end` chooses among
    checkpoints at the final sparsity, and the patience of `EarlyStoppingCallback` and of a learning rate
    that follows a metric counts from there; `save_strategy="best"` saves every evaluation before that. The
    checkpoint that is loaded at the end brings the sparsity that is recorded in it.

    Parameters
    ----------
    schedule
        The sparsity at each fraction of training.
    warn
        Called with a message, by default as a Python warning, if training ends before the final sparsity, if
        `load_best_model_at_end` finds no checkpoint at the final sparsity, and if a run is resumed at another sparsity
        than that of its checkpoint.

    Raises
    ------
    ValueError
        When training starts on a model without a sparsity to set, or with different sparsities in different layers.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> ramp = crisp.SparsityCallback(crisp.Schedule(final=0.8, end=0.6))  # Trainer(..., callbacks=[ramp])
    """

    def __init__(self, schedule: Schedule, warn: Callable[[str], None] = warnings.warn) -> None:
        self.schedule, self.warn = schedule, warn

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        found = sorted(set(SparseModel.of(model).sparsity.values()))
        if len(found) != 1:
            raise ValueError(f"a schedule sets one sparsity for all layers; this model has {found or 'none'}")
        planned = self._planned(state)
        resumed = _recorded(Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))
        set_sparsity(model, planned if resumed is None else resumed)
        if resumed is not None and abs(resumed - planned) > SAME:
            self._warn(
                state,
                f"the checkpoint of step {state.global_step} has sparsity {resumed:.4g}; the schedule continues "
                f"from {planned:.4g}, its value at step {state.global_step} of {state.max_steps}",
            )
        best = _recorded(Path(state.best_model_checkpoint)) if state.best_model_checkpoint else planned
        if not self._is_final(planned if best is None else best):
            _forget_best(state, kwargs.get("lr_scheduler"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._is_final(self._planned(state)):
            _forget_best(state, kwargs.get("lr_scheduler"))
        set_sparsity(kwargs["model"], self._planned(state, steps=state.global_step + 1))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._is_final(self._planned(state)):  # training may end here, and load the best
            _forget_best(state, kwargs.get("lr_scheduler"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        if _in_force(model) is None:  # made dense, or given another method, in the meantime
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            recorded = _recorded(Path(state.best_model_checkpoint))
            of_step = self._planned(state, steps=state.best_global_step)
            set_sparsity(model, of_step if recorded is None else recorded)
        now, messages = _in_force(model), []
        if now is not None and not self._is_final(now):
            reached = math.ceil(self.schedule.end * state.max_steps - SAME)
            messages.append(
                f"training ended at step {state.global_step} of {state.max_steps}: the model has sparsity "
                f"{now:.4g}, not the schedule's final {self.schedule.final:g}, which step {reached} would have reached"
            )
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            messages.append(
                f"load_best_model_at_end found no checkpoint at the final sparsity {self.schedule.final:g} with an "
                f"evaluation to choose it by, and loaded none: the model is the one after step {state.global_step}"
            )
        if messages:
            self._warn(state, "; ".join(messages))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (now := _in_force(kwargs["model"])) is not None:
            # the Trainer's history holds a copy of the logs, made before this call
            kwargs["logs"]["sparsity"] = state.log_history[-1]["sparsity"] = now

    def _planned(self, state: TrainerState, steps: int | None = None) -> float:
        """The sparsity after `steps` steps, by default those done."""
        done = state.global_step if steps is None else steps
        return self.schedule(min(done / max(state.max_steps, 1), 1.0))

    def _is_final(self, sparsity: float) -> bool:
        return abs(sparsity - self.schedule.final) <= SAME

    def _warn(self, state: TrainerState, message: str) -> None:
        if state.is_world_process_zero:
            self.warn(message)


def _in_force(model: nn.Module) -> float | None:
    """The one sparsity of a model's layers now; None if it is dense or has none, or several."""
    sparse = SparseModel.find(model)
    found = {method.sparsity for method in sparse.methods.values()} - {None} if sparse else set()
    return found.pop() if len(found) == 1 else None


def _recorded(checkpoint: Path) -> float | None:
    """The one sparsity with which a checkpoint was saved; None if it holds none."""
    settings = recorded_at(checkpoint)
    found = {method.sparsity for method in settings[0].values()} - {None} if settings else set()
    return found.pop() if len(found) == 1 else None


def _forget_best(state: TrainerState, scheduler: Any) -> None:
    """Clear the Trainer's record of the best evaluation."""
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None
    if isinstance(scheduler, ReduceLROnPlateau | GreedyLR):
        scheduler.best = -math.inf if scheduler.mode == "max" else math.inf
        scheduler.num_bad_epochs = 0
    if isinstance(scheduler, GreedyLR):
        scheduler.num_good_epochs = 0
