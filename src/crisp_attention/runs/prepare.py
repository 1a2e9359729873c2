"""Everything before the training of a run: data, the model made sparse, a Trainer that is ready to start."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from crisp_attention.errors import OptionError, first_line
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.method import Method
from crisp_attention.models.apply import sparsify
from crisp_attention.models.persistence import read_fitted
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.matrices import matrices_of
from crisp_attention.runs.callback import SparsityCallback
from crisp_attention.runs.costs import StepTimes
from crisp_attention.runs.data import load_task
from crisp_attention.runs.evaluation import scores_of
from crisp_attention.runs.processes import OwnPart
from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.rehearsal import DROPS_NOTHING, rehearse
from crisp_attention.runs.sources import Source, encoded, load_source
from crisp_attention.runs.spec import RunSpec
from crisp_attention.runs.task import Metric, Task
from crisp_attention.runs.terminal import say
from crisp_attention.runs.trainer import RunTrainer, longest_first

PRUNED = 0.2  # of weights that are zero, from which a checkpoint was pruned


@dataclass(frozen=True)
class Prepared:
    """A run that has been tried with a few examples and can begin.

    unmeasured: why attention cannot be measured in a run that is dense; None where it can.
    """

    trainer: Trainer
    times: StepTimes
    source: Source
    task: Task
    metric: Metric
    progress: RunProgress
    notes: tuple[str, ...]
    unmeasured: str | None


def prepare(
    spec: RunSpec, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback], console: Console
) -> Prepared:
    """Read data and model, make the model sparse, and try how it would be trained; nothing is written.

    Raises OptionError, DataError or CheckpointError for what the run could not do.
    """
    task = load_task(spec.data, spec.seed)
    metric = task.target.metric(spec.metric)
    if (best := (arguments.metric_for_best_model or "loss").removeprefix("eval_")) != "loss":
        task.target.metric(best, "metric_for_best_model")
    set_seed(spec.seed)
    source = load_source(spec.model, task, spec.recipe.max_length)
    attention = make_sparse(source.model, spec)
    task = encoded(source, task)
    progress = RunProgress(console, metric)
    warn = warnings.warn if console.quiet else partial(say, console)
    scheduled = [SparsityCallback(spec.schedule, warn)] if spec.schedule else []
    treating = spec.treatment.callbacks(source, task, arguments) if spec.treatment else ()
    trainer, times = build(source, task, arguments, [*scheduled, *treating, progress, *callbacks])
    unmeasured, drops_nothing = rehearse(trainer, source, task)
    notes = (*source.notes, attention, *_pruned_before(source.model, spec), *task.notes)
    if unmeasured:
        notes = (*notes, f"attention: dense, not measured: {unmeasured}")
    if drops_nothing:
        notes = (*notes, f"attention: {DROPS_NOTHING}")
    return Prepared(trainer, times, source, task, metric, progress, notes, unmeasured)


def _pruned_before(model: PreTrainedModel, spec: RunSpec) -> list[str]:
    """A note on zeros that the checkpoint has and training would fill."""
    if spec.treatment is not None or not (matrices := matrices_of(model).matrices):
        return []
    zeros = Masks.of(matrices).sparsity
    if zeros < PRUNED:
        return []
    return [
        f"pruned: {zeros:.0%} of the checkpoint's weights are zero, and training changes them; crisp prune keeps them"
    ]


def make_sparse(model: PreTrainedModel, spec: RunSpec) -> str:
    """Apply the run's treatment and method, and say in one sentence which attention the model has now.

    A dense run keeps the model's own attention, the honest baseline for time. Raises OptionError if the model is not
    supported or a layer does not exist.
    """
    if spec.treatment is not None:
        try:
            spec.treatment.apply(model)
        except ValueError as error:
            raise OptionError(f"{spec.treatment.spec}: {error}") from error
    if not spec.is_dense:
        try:
            sparsify(
                model,
                spec.method,
                layers=spec.layers or None,
                phase=spec.phase,  # type: ignore[arg-type]
                attention=spec.attention,  # type: ignore[arg-type]
            )
            if isinstance(spec.method, Method) and spec.method.is_fitted:
                read_fitted(model)
        except (TypeError, ValueError) as error:
            option = "layers" if spec.layers else "budgets" if isinstance(spec.method, Budgets) else None
            raise OptionError(str(error), option) from error
    treated = "" if spec.treatment is None else f"treatment: {spec.treatment.spec}; "
    if (sparse := SparseModel.find(model)) is None:
        return f"{treated}attention: dense, the model's own"
    parts = ["budgets by layer and head" if isinstance(spec.method, Budgets) else spec.method.spec]
    if (schedule := spec.schedule) is not None:
        parts.append(
            f"sparsity {schedule.initial:g} to {schedule.final:g} ({schedule.shape}, "
            f"from {schedule.begin:.0%} to {schedule.end:.0%} of training)"
        )
    if spec.phase != "always":
        parts.append({"train": "in training only", "eval": "in evaluation only"}[spec.phase])
    return f"{treated}attention: {', '.join(parts)}, in {len(sparse.methods)} of {len(sparse.layers)} layers"


def train(source: Source, task: Task, arguments: TrainingArguments) -> Trainer:
    """Train the source's model on the task with transformers' Trainer. Raises as `build` does."""
    trainer, _ = build(source, encoded(source, task), arguments)
    trainer.train()
    return trainer


def build(
    source: Source,
    task: Task,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer, StepTimes]:
    """A Trainer ready to start on the encoded task, its optimizer and learning rate schedule tried.

    The disk stays as it was. Raises OptionError for what the arguments need and is missing, such as a package.
    """
    times = StepTimes()
    validation = task.splits.get("validation")
    # the Trainer repeats each loss as often as a batch may have examples, however few there are
    arguments.per_device_eval_batch_size = min(
        arguments.per_device_eval_batch_size, max(map(len, task.splits.values()))
    )
    try:
        with _output_elsewhere(arguments):
            trainer = RunTrainer(
                model=source.model,
                args=arguments,
                train_dataset=task.splits["train"],
                eval_dataset=longest_first(validation) if validation is not None else None,
                data_collator=source.collate,
                compute_metrics=partial(scores_of, task.target),
                preprocess_logits_for_metrics=lambda logits, labels: (
                    logits[0] if isinstance(logits, tuple) else logits
                ),
                callbacks=[OwnPart(), times, *callbacks],
            )
            trainer.create_optimizer()
            scratch = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
            trainer.create_scheduler(num_training_steps=100, optimizer=scratch)  # training makes its own
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"the run cannot start: {first_line(error)}") from error
    trainer.remove_callback(PrinterCallback)  # prints raw dictionaries
    return trainer, times


@contextmanager
def _output_elsewhere(arguments: TrainingArguments) -> Iterator[None]:
    """A Trainer makes its output folder when it is built: here one that is gone afterwards.

    Making and removing the real one would be in the way of a process that makes its own beside it.
    """
    output = arguments.output_dir
    with TemporaryDirectory() as folder:
        arguments.output_dir = str(Path(folder) / Path(str(output)).name)
        try:
            yield
        finally:
            arguments.output_dir = output
