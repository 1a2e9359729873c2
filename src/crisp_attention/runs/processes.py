"""One run in several processes, as torchrun and accelerate launch start them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crisp_attention.errors import CheckpointError, DataError, OptionError, first_line


@contextmanager
def agreed() -> Iterator[None]:
    """A block that no process leaves before all have come through it; an error in one is raised in all.

    Needs TrainingArguments to have been made: they join the processes. In a single one it does nothing.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    errors = [error for error in gather_object([_portable(own)]) if error is not None]
    if errors:
        raise own or errors[0]


def _portable(error: Exception | None) -> Exception | None:
    if error is None or isinstance(error, (CheckpointError, DataError, OptionError)):
        return error
    return RuntimeError(f"another process of the run failed: {first_line(error)}")


class OwnPart(TrainerCallback):
    """Each process of a run draws its own dropout and random keys, and all take their batches of one order."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.process_index > 0:
            torch.manual_seed(args.seed + (args.process_index << 32))  # the seed of no other run

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # the Trainer does not reach the sampler of a process's share of an epoch resumed in its middle
        kwargs["train_dataloader"].set_epoch(int(state.epoch or 0))
