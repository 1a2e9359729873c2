"""Pruning in a Trainer: at some steps of training, and held in between."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from crisp_attention.errors import OptionError
from crisp_attention.pruning.masks import Masks
from crisp_attention.pruning.matrices import Matrix
from crisp_attention.pruning.selection import range_of
from crisp_attention.pruning.steps import Batch, mark, step
from crisp_attention.pruning.straight_through import StraightThrough
from crisp_attention.runs.data.classes import of_classes, others
from crisp_attention.runs.data.load import EVERY_CLASS
from crisp_attention.runs.data.splits import sample
from crisp_attention.runs.pruning.treatment import DENSE_WEIGHTS, NONE, Pruning
from crisp_attention.runs.sources import Source
from crisp_attention.runs.task import Task
from crisp_attention.runs.task.target import Classification
from crisp_attention.schedule import Schedule

BATCH = 32  # examples whose gradients are averaged before their size is taken

Batches = Callable[[], Iterable[Batch]]


def calibration(treatment: Pruning, source: Source, task: Task, seed: int) -> Batches:
    """The batches that gradients are taken on, of the encoded task; in several processes each has its part.

    They are as many whosever they are. Raises OptionError for gradients of other classes where none are the user's, and
    DataError where there are too few.
    """
    rows = task.splits["train"]
    count = min(treatment.examples, len(rows))
    if treatment.gradients != "classes":
        if not isinstance(task.target, Classification) or not task.target.classes:
            raise OptionError(
                f"gradients={treatment.gradients} needs classes of a user, from which it differs: expected classes or "
                f"draw_classes",
                "gradients",
            )
        rows = task.splits[EVERY_CLASS]
        if treatment.gradients == "random":
            rows = of_classes(rows, others(task.target, rows, seed))
    rows = sample(rows, count)

    def batches() -> Iterable[Batch]:
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        own, every = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
        device = next(source.model.parameters()).device
        for start in range(own * BATCH, len(rows), every * BATCH):
            chosen = rows.select(range(start, min(start + BATCH, len(rows))))
            yield send_to_device(source.collate(list(chosen)), device)

    return batches


class PruningCallback(TrainerCallback):
    """Prunes before the first of each of `treatment.steps` equal parts of training, and holds the zeros.

    The zeros in the weights are all the state there is, so that a resumed run continues as if it had not stopped; with
    `ste` there are dense weights too, in a file of each checkpoint.
    """

    def __init__(self, treatment: Pruning, batches: Batches) -> None:
        self.treatment, self.batches = treatment, batches
        self._held = ExitStack()
        self._masks: Masks | None = None
        self._targets: dict[int, float | dict[str, float]] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, own = kwargs["model"], self.treatment
        groups = own.matrices(model)
        self.close()
        self._targets = {}
        for number in range(own.steps):
            shares = [
                Schedule(final, range_of(group, own.zeros).least, own.shape, 0.0, 1.0)(
                    (number + 1) / own.steps
                )
                for group, final in groups
            ]
            first = number * state.max_steps // own.steps  # of several at one step the last counts
            self._targets[first] = dict(zip(own.by_kind, shares, strict=True)) if own.by_kind else shares[0]
        if state.global_step:
            matrices = own.pruned(model)
            self._hold(Masks.of(matrices) if own.ste == NONE else self._read(_file(args, state), matrices))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (target := self._targets.get(state.global_step)) is None:
            return
        own = self.treatment
        masks = step(
            kwargs["model"],
            self.batches(),
            target,
            pattern=None if own.pattern == NONE else own.pattern,
            block_size=own.block_size or None,
            saliency=own.saliency,
            normalised=own.normalised,
            score_kept=own.score_kept,
            ste=own.ste,
            before=None if own.ste == NONE else self._masks,
            skip=own.skip,
        )
        self._hold(masks)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        matrices = self.treatment.pruned(kwargs["model"])
        zeros = sum(int((each.weight == 0).sum()) for each in matrices)
        share = zeros / sum(each.weight.numel() for each in matrices)
        kwargs["logs"]["sparsity"] = state.log_history[-1]["sparsity"] = share

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if isinstance(self._masks, StraightThrough) and state.is_world_process_zero:
            tensors = {name: each.contiguous() for name, each in self._masks.tensors().items()}
            save_file(tensors, _file(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()
        mark(kwargs["model"], self.treatment.zeros)

    def close(self) -> None:
        """No longer hold the zeros."""
        self._held.close()

    def _hold(self, masks: Masks) -> None:
        self.close()
        self._masks, self._held = masks, ExitStack()
        self._held.enter_context(masks.held())

    def _read(self, file: Path, matrices: list[Matrix]) -> StraightThrough:
        own = self.treatment
        return StraightThrough.of_tensors(matrices, load_file(file), own.zeros, own.ste)


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    """The file next to a checkpoint's weights with what `ste` needs in addition."""
    return Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", DENSE_WEIGHTS)
