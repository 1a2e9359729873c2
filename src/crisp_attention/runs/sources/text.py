"""Text classifiers, and the batches they read, padded so that no text affects the result of another."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel

from crisp_attention.errors import OptionError, first_line, listed
from crisp_attention.models.transformers.checkpoints import UNUSABLE
from crisp_attention.runs.sources.agreement import agree, check_known, words_of
from crisp_attention.runs.sources.encoding import WHOLE, tokenized
from crisp_attention.runs.sources.pretrained import read_classifier, read_tokenizer
from crisp_attention.runs.sources.source import Batch, Source, tried
from crisp_attention.runs.task import Task

MAX_LENGTH = 128
TRIED, SHORT = 64, 32  # examples, and their tokens, among which a short and a long one are tried
EXTRA = 3  # tokens of padding beyond the longest text of a batch
TOLERANCE = 1e-4  # of the largest logit, in float32
Example = dict[str, list[int]]
ROWS = 10_000  # looked at together


def text_model(path: str | Path, task: Task, max_length: int, *, keep_record: bool = False) -> Source:
    """The classifier and tokenizer at `path`, brought to agree with each other and with the task's texts.

    `keep_record` as in `load_source`. Raises CheckpointError for what cannot be read, OptionError for what cannot
    agree.
    """
    classifier = read_classifier(path, task, keep_record=keep_record)
    model, tokenizer, names = classifier.model, read_tokenizer(path), task.text_columns
    notes = [*classifier.settled, *fit_vocabulary(model, tokenizer)]
    rows = task.splits["train"][:TRIED]
    long = max(range(len(rows["index"])), key=lambda row: len(rows[names[0]][row]))
    agreed = agree(model, tokenizer, [rows[name][long] for name in names])
    notes += [
        *agreed.notes,
        *choose_pad_token(path, model, tokenizer, skips_padding=agreed.skips_padding),
    ]
    if max_length < agreed.least:
        raise OptionError(
            f"max_length must be at least {agreed.least}, as the tokenizer adds {agreed.least - len(names)} "
            f"tokens to the text; got {max_length}",
            "max_length",
        )
    limit = agreed.cut(max_length)
    if limit < max_length:
        notes.append(f"longest text: {limit} tokens instead of {max_length}, as {agreed.by} takes no more")
    taken = agreed.taken
    if "attention_mask" in taken and "attention_mask" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]

    def tokenize(rows: Mapping[str, list[str]], length: int) -> dict[str, list[list[int]]]:
        tokens = tokenizer(*(rows[name] for name in names), truncation=True, max_length=length)
        return {name: values for name, values in tokens.items() if name in taken}

    def padded(examples: Sequence[Mapping[str, Any]], length: int | None) -> Batch:
        pad = DataCollatorWithPadding(tokenizer, "max_length" if length else True, length)
        batch = pad([{name: each[name] for name in each if name in taken} for each in examples])
        return {name: values for name, values in batch.items() if name in taken}

    def logits(examples: Sequence[Example], length: int | None) -> Tensor:
        with tried(model, "texts as its tokenizer encodes them"):
            output: Any = model(**padded(examples, length))
            return output.logits

    short = tokenize(rows, max(agreed.least, min(SHORT, limit - EXTRA)))
    check_tokens(
        Dataset.from_dict({"input_ids": short["input_ids"], "index": rows["index"]}), model, tokenizer
    )
    if all(tokens[-1:] == [tokenizer.pad_token_id] for tokens in short["input_ids"]):
        notes.append(
            f"padding: the tokenizer ends every text with its padding token, {tokenizer.pad_token}; a classifier that "
            f"reads the last token reads the one before"
        )
    fixed, said = choose_padding(tokenizer, _short_and_long(short), logits, limit)

    def encode(split: Dataset) -> Dataset:
        encoded = tokenized(split, tokenizer, names, limit)
        unread = {*encoded.column_names} - {*split.column_names} - taken - {WHOLE}
        encoded = encoded.remove_columns(sorted(unread))
        check_tokens(encoded, model, tokenizer)
        return encoded

    def collate(examples: list[dict[str, Any]]) -> Batch:
        return padded(examples, fixed)

    return Source(model, encode, collate, tokenizer, classifier.drawn, (*notes, *said))


def _short_and_long(tokens: Mapping[str, list[list[int]]]) -> list[Example]:
    lengths = [len(each) for each in tokens["input_ids"]]
    rows = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: lengths[row])
    return [
        {name: values[row] for name, values in tokens.items()} for row in dict.fromkeys((rows[0], rows[-1]))
    ]


def choose_pad_token(
    path: str | Path, model: PreTrainedModel, tokenizer: Any, *, skips_padding: bool
) -> list[str]:
    """Give the tokenizer a padding token and the model its id; returns notes for the user.

    The tokenizer's own is taken, else the model's, else the end token. A model that `skips_padding` when it counts
    positions keeps its own id: another one would change its positions. Raises OptionError
    if there is no token to pad with, or the model has no embedding for it.
    """
    config, notes = model.config, []
    of_model = getattr(config.get_text_config(), "pad_token_id", None)
    if tokenizer.pad_token_id is None:
        if isinstance(of_model, int) and 0 <= of_model < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(of_model)
            owner = "the model's"
        elif tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
            owner = "its end token"
        else:
            raise OptionError(
                f"the tokenizer of {path} has neither a padding token nor an end token to pad with"
            )
        notes.append(f"padding: the tokenizer has no padding token; {owner}, {tokenizer.pad_token}, is used")
    elif of_model not in (None, tokenizer.pad_token_id):
        stays = (
            "the model, which counts positions by its own padding id, keeps"
            if skips_padding
            else "the model had"
        )
        notes.append(
            f"padding: the tokenizer's {tokenizer.pad_token} ({tokenizer.pad_token_id}) is used; {stays} {of_model}"
        )
    check_known([tokenizer.pad_token_id], model, tokenizer)
    if not skips_padding:
        for part in (config, config.get_text_config()):  # a classifier reads it in the one or in the other
            part.pad_token_id = tokenizer.pad_token_id
    return notes


def choose_padding(
    tokenizer: Any,
    examples: Sequence[Example],
    logits: Callable[[Sequence[Example], int | None], Tensor],
    limit: int,
) -> tuple[int | None, list[str]]:
    """Set the side on which the tokenizer pads; returns the length to pad to, None for a batch's longest text.

    `logits` are the model's for examples padded to a length. The tokenizer's own side is kept if examples
    give the same logits alone and together, else the other one is taken if they do there. A model whose results
    depend on padding on either side gets all texts padded to one length, `limit`.
    """
    given = tokenizer.padding_side
    width = min(max(len(each["input_ids"]) for each in examples) + EXTRA, limit)
    for side in (given, "left" if given == "right" else "right"):
        tokenizer.padding_side = side
        alone = torch.cat([logits([each], None) for each in examples])
        bound = TOLERANCE * float(alone.nan_to_num().abs().max())
        if torch.allclose(logits(examples, width), alone, rtol=0, atol=bound, equal_nan=True):
            note = f"padding: on the {side}; on the {given}, the tokenizer's side, it changes this model's results"
            return None, [note] * (side != given)
    tokenizer.padding_side = given
    return limit, [
        f"padding: all texts to {limit} tokens, because this model's results depend on the amount of padding"
    ]


def fit_vocabulary(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    """Give embeddings to tokens that were added to the tokenizer; returns notes for the user.

    Raises OptionError if the embeddings cannot be extended.
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
                f"the tokenizer has {len(added)} tokens more than the model, whose embeddings cannot be extended: "
                f"{first_line(error)}"
            ) from error
        notes.append(
            f"vocabulary: embeddings of tokens that only the tokenizer has, randomly initialised: {listed(added)}"
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
                f"the text of row {rows[only[0]]} consists of nothing but the padding token, {tokenizer.pad_token}"
            )
        if counts_ends:
            counts = np.bincount(owners[tokens == model.config.eos_token_id], minlength=len(lengths))
            ends = int(counts[0]) if ends is None else ends
            if not ends or (counts != ends).any():
                at = int(np.argmax(counts != ends)) if ends else 0
                raise OptionError(
                    f"{type(model).__name__} reads a text at its end token, id {model.config.eos_token_id}: "
                    f"expected as many in every text, at least one; row {rows[at]} has {counts[at]}"
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
