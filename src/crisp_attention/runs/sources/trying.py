"""Passes of a model that may turn out not to fit its data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError, first_line
from crisp_attention.insight.profile.collect import evaluating
from crisp_attention.models.persistence import UNUSABLE


@contextmanager
def tried(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Evaluate the model inside the block; the generators of random numbers are afterwards as they were.

    Raises OptionError, which says that the model cannot read `what`, for what a model raises on inputs that
    do not fit it.
    """
    try:
        with torch.random.fork_rng(devices=[]), evaluating(model), torch.no_grad():
            yield
    except UNUSABLE as error:
        raise OptionError(f"{type(model).__name__} cannot read {what}: {first_line(error)}") from error
