"""transformers' Trainer with batches by length that keep their order: when resumed, and in evaluation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthSampler(Sampler[int]):
    """Random examples of similar length side by side, so that their batches hold little padding.

    The order follows from the seed and the epoch alone: a run resumed in the middle of an epoch goes
    on with the batches that it had left.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer as an epoch begins."""
        self.epoch = epoch


class RunTrainer(Trainer):
    """The Trainer's own samplers by length draw anew when resumed, shuffle predictions and refuse images."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthSampler(_lengths(rows), batch_size, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return SequentialSampler(eval_dataset)  # predictions must come in the order of the examples


def longest_first(split: Dataset) -> Dataset:
    """An encoded split in the order in which evaluating it takes least padding."""
    return split.select(np.argsort(_lengths(split), kind="stable")[::-1])


def _lengths(rows: Any) -> list[int]:
    return [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.features else [1] * len(rows)
