"""What a run starts from, and passes of a model that may turn out not to fit its data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError, first_line, listed
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.transformers.checkpoints import UNUSABLE

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A dense model with a head for the task, and the way from examples to its batches."""

    model: PreTrainedModel
    encode: Callable[[Dataset], Dataset]
    collate: Callable[[list[dict[str, Any]]], Batch]
    processor: Any  # saved with the model, where the model has one
    drawn: tuple[str, ...] = ()  # weights that the checkpoint does not hold, randomly initialised
    settled: tuple[str, ...] = ()  # where model, tokenizer or processor and data disagreed, and which one won

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        model = f"model: {type(self.model).__name__}, {self.model.num_parameters():,} parameters"
        drawn = f"weights not in the checkpoint, randomly initialised: {listed(self.drawn)}"
        return (model, *([drawn] if self.drawn else []), *self.settled)


@contextmanager
def tried(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Evaluate the model inside the block; the random number generators are restored afterwards.

    Raises OptionError, which says that the model cannot read `what`, for what a model raises on inputs that
    do not fit it.
    """
    try:
        with borrowed(model, evaluate=True, untouched=True):
            yield
    except UNUSABLE as error:
        raise OptionError(f"{type(model).__name__} cannot read {what}: {first_line(error)}") from error
