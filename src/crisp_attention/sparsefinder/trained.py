"""A trained model with entmax as it was saved, and examples in batches that it reads."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from crisp_attention.errors import CheckpointError, OptionError, listed
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.method import Method
from crisp_attention.models.host import AttentionLayer
from crisp_attention.models.persistence import is_recorded, restore
from crisp_attention.models.settings import settings_on
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.splits import sample
from crisp_attention.runs.sources import Source, encoded, load_source
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task import Task
from crisp_attention.sparsefinder.options import SourceOptions


@dataclass(frozen=True)
class Trained:
    """The model on its device, with the methods that it was saved with, and its task, encoded."""

    source: Source
    task: Task

    @property
    def model(self) -> nn.Module:
        return self.source.model

    def batches(self, split: str, count: int, size: int) -> "DataLoader[Any]":
        """At most `count` examples of a split, the same ones in the same random order every time."""
        found = sample(self.task.splits[split], count)
        rows: Any = found.select(np.random.default_rng(0).permutation(len(found)))
        return DataLoader(rows, batch_size=size, collate_fn=self.source.collate)


def read_trained(options: SourceOptions, wanted: dict[str, int]) -> Trained:
    """The model of the options, and at most as many examples of each split as are `wanted`.

    Raises OptionError, DataError or CheckpointError for what cannot be read or used.
    """
    try:
        check_whole("batch_size", options.batch_size, 1)
    except ValueError as error:
        raise OptionError(str(error), "batch_size") from error
    task = load_task(Data.from_dict(vars(options)))
    source = load_source(options.model, task, options.max_length, keep_record=True)
    if source.drawn:
        raise OptionError(
            f"model {options.model} has no weights for these data in {listed(source.drawn)}; fine-tune it first",
            "model",
        )
    try:
        if is_recorded(source.model):
            restore(source.model)
    except ValueError as error:
        raise CheckpointError(f"cannot make the model in {options.model} sparse again: {error}") from error
    splits: dict[str, Dataset] = {split: sample(task.splits[split], count) for split, count in wanted.items()}
    task = encoded(source, replace(task, splits=splits))
    if (device := torch.accelerator.current_accelerator(check_available=True)) is not None:
        source.model.to(device)  # type: ignore[arg-type]
    return Trained(source, task)


def entmax_layers(model: nn.Module) -> dict[AttentionLayer, Method]:
    """The self-attention layers whose weights have zeros of their own, with their methods.

    Raises OptionError for a model without any, and for one that is sparse in training alone.
    """
    sparse = SparseModel.find(model)
    if sparse and sparse.phase == "train":
        raise OptionError(
            "the model is sparse in training only (phase 'train'); expected one that uses entmax in evaluation",
            "model",
        )
    found = {
        layer: method
        for layer in (sparse.layers if sparse else ())
        if isinstance(method := settings_on(layer).method, Method)
        and method.rule.zeros_are_dropped
        and not layer.cross
    }
    if not found:
        there = [f"{name}: {method}" for name, method in sparse.methods.items()] if sparse else []
        raise OptionError(
            "no layer of the model uses entmax in all its heads, so there are no pairs to predict; found "
            f"{listed(there) if there else 'dense attention'}. Train it with --method entmax first",
            "model",
        )
    return found
