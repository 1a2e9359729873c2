"""Whether the tokens of texts are tokens of the model."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError, first_line, listed
from crisp_attention.models.transformers.checkpoints import UNUSABLE
from crisp_attention.runs.sources.agreement import check_known, words_of
from crisp_attention.runs.sources.source import tried

ROWS = 10_000  # looked at together


def fit_vocabulary(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    """Give embeddings to tokens that were added to the tokenizer; returns what is said to the user.

    Raises OptionError if the model cannot be given more.
    """
    if (words := words_of(model)) is None:
        return []
    notes = []
    added = [tokenizer.convert_ids_to_tokens(i) for i in range(words.num_embeddings, len(tokenizer))]
    if added and tokenizer.vocab_size <= words.num_embeddings:
        try:
            words = model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        except UNUSABLE as error:
            raise OptionError(
                f"the tokenizer has {len(added)} tokens more than the model, which cannot be given embeddings for "
                f"them: {first_line(error)}"
            ) from error
        notes.append(
            f"vocabulary: embeddings of tokens that only the tokenizer has, drawn at random: {listed(added)}"
        )
    return notes


def check_tokens(encoded: Dataset, model: PreTrainedModel, tokenizer: Any) -> None:
    """Raises OptionError for texts with tokens that the model does not have, or that it cannot find the end of."""
    ends: int | None = None
    counts_ends = _counts_ends(model)
    for table in encoded.with_format("arrow").iter(batch_size=ROWS):
        lists = table["input_ids"].combine_chunks()
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        tokens = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
        rows = table["index"]  # in the split as it was read
        owners = np.repeat(np.arange(len(lengths)), lengths)
        check_known([int(tokens.max(initial=0))], model, tokenizer)
        padding = np.bincount(owners[tokens == tokenizer.pad_token_id], minlength=len(lengths))
        if (only := np.flatnonzero((padding == lengths) & (lengths > 0))).size:
            raise OptionError(
                f"the text of row {rows[only[0]]} holds nothing but the padding token, {tokenizer.pad_token}"
            )
        if counts_ends:
            counts = np.bincount(owners[tokens == model.config.eos_token_id], minlength=len(lengths))
            ends = int(counts[0]) if ends is None else ends
            if not ends or (counts != ends).any():
                at = int(np.argmax(counts != ends)) if ends else 0
                raise OptionError(
                    f"{type(model).__name__} reads a text at its end token, number {model.config.eos_token_id}, of "
                    f"which every text must have the same number, at least one; row {rows[at]} has {counts[at]}"
                )


def _counts_ends(model: PreTrainedModel) -> bool:
    """Whether the model refuses texts together that have different numbers of its end token, as BART does."""
    end = getattr(model.config, "eos_token_id", None)
    if not model.config.is_encoder_decoder or not isinstance(end, int):
        return False
    other = int(end == 0)  # any token but the end
    try:
        with tried(model, "texts with different numbers of end tokens"):
            model(input_ids=torch.tensor([[other, other, end], [other, end, end]]))
    except OptionError:
        return True
    return False
