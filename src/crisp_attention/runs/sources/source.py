"""What a run starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from crisp_attention.errors import listed

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A dense model with a head for the task, and the way from examples to its batches."""

    model: PreTrainedModel
    encode: Callable[[Dataset], Dataset]
    collate: Callable[[list[dict[str, Any]]], Batch]
    processor: Any  # saved beside the model, where the model has one
    drawn: tuple[str, ...] = ()  # weights that the checkpoint does not hold, drawn at random
    settled: tuple[str, ...] = ()  # where model, tokenizer or processor and data disagreed, and which one won

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        model = f"model: {type(self.model).__name__}, {self.model.num_parameters():,} parameters"
        drawn = f"weights not in the checkpoint, drawn at random: {listed(self.drawn)}"
        return (model, *([drawn] if self.drawn else []), *self.settled)
