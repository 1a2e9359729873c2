"""transformers' Trainer with batches by length that keep their order: when resumed, and in evaluation."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_batch_size, recursively_apply, slice_tensors
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from crisp_attention.models.borrowing import borrowed

SHARE = "share_of_loss"  # added to the inputs of a batch


class EpochSampler(Sampler[int]):
    """The examples of an epoch in the order that `arrange` draws, from the seed and the epoch together.

    Not from their sum, by which the second epoch of seed 0 would repeat the first of seed 1. A run resumed
    in the middle of an epoch continues with the batches that were left.
    """

    def __init__(self, rows: int, seed: int, arrange: Callable[[torch.Generator], list[int]]) -> None:
        self.rows, self.seed, self.arrange, self.epoch = rows, seed, arrange, 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        drawn = int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0])
        return iter(self.arrange(torch.Generator().manual_seed(drawn)))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer as an epoch begins."""
        self.epoch = epoch


class RunTrainer(Trainer):
    """The Trainer's own samplers by length draw a new order when resumed, shuffle predictions and refuse images.

    In several processes, batch i of all together is batch i of one process whose batches are as large as
    theirs together. Where an epoch or a split ends in fewer examples, accelerate repeats the first ones:
    here they count for nothing, in the loss, the predictions and what `crisp.measuring` sees.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        # else a mean loss, as of many classifiers, is multiplied by the number of processes
        self.model_accepts_loss_kwargs = False

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and (uneven := self._own_rows(batches[-1], self.train_dataset)) is not None:
            own, share = uneven
            batches[-1] = {**slice_tensors(batches[-1], slice(0, max(own, 1))), SHARE: share}
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        share = inputs.pop(SHARE, None)
        loss = super().compute_loss(model, inputs, *given, **named)
        return loss if share is None else loss * share

    def prediction_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> tuple[Any, Any, Any]:
        dataloader: Any = self.callback_handler.eval_dataloader
        uneven = self._own_rows(inputs, dataloader.dataset)
        if uneven is None:
            return super().prediction_step(model, inputs, *given, **named)
        own, size = uneven[0], find_batch_size(inputs)
        inputs = slice_tensors(inputs, slice(0, max(own, 1)))
        with nullcontext() if own else borrowed(model, unobserved=True):
            loss, *rows = super().prediction_step(model, inputs, *given, **named)

        def whole(part: Tensor) -> Tensor:
            return torch.cat([part, part[:1].expand(size - len(part), *part.shape[1:])])

        logits, labels = recursively_apply(whole, rows)
        return loss, logits, labels

    def _own_rows(self, batch: Any, rows: Any) -> tuple[int, float] | None:
        """Of the last batch, how many examples are not repeated, and their share of the mean over processes.

        None for all other batches, and where nothing is repeated.
        """
        processes = self.accelerator.num_processes
        if processes == 1 or not self.accelerator.gradient_state.end_of_dataloader:
            return None
        size = find_batch_size(batch)
        left = len(rows) % (size * processes)
        own = min(max(left - self.accelerator.process_index * size, 0), size)
        return (own, own * processes / left) if left else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        strategy = self.args.train_sampling_strategy
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        count = len(rows)
        if strategy == "random":
            return EpochSampler(count, seed, lambda draw: torch.randperm(count, generator=draw).tolist())
        if strategy == "group_by_length":
            lengths = _lengths(rows)
            batch = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
            return EpochSampler(
                count, seed, lambda draw: get_length_grouped_indices(lengths, batch, generator=draw)
            )
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        return SequentialSampler(eval_dataset)  # predictions must come in the order of the examples


def longest_first(split: Dataset) -> Dataset:
    """An encoded split in the order in which evaluating it takes least padding."""
    return split.select(np.argsort(_lengths(split), kind="stable")[::-1])


def _lengths(rows: Any) -> list[int]:
    return [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.features else [1] * len(rows)
