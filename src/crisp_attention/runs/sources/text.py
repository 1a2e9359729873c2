"""Text classifiers and the batches they read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from crisp_attention.errors import OptionError
from crisp_attention.runs.data import Task
from crisp_attention.runs.data.tokens import WHOLE, tokenized
from crisp_attention.runs.sources.agreement import agree
from crisp_attention.runs.sources.padding import EXTRA, Example, choose_pad_token, choose_padding
from crisp_attention.runs.sources.pretrained import read_classifier, read_tokenizer
from crisp_attention.runs.sources.source import Batch, Source
from crisp_attention.runs.sources.tokens import check_tokens, fit_vocabulary
from crisp_attention.runs.sources.trying import tried

MAX_LENGTH = 128
TRIED, SHORT = 64, 32  # examples, and their tokens, among which a short and a long one are tried


def text_model(path: str | Path, task: Task, max_length: int) -> Source:
    """The classifier and tokenizer at `path`, brought to agree with each other and with the task's texts.

    Raises CheckpointError for what cannot be read, OptionError for what cannot agree.
    """
    classifier = read_classifier(path, task)
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
            f"--max-length must be at least {agreed.least}, as the tokenizer adds {agreed.least - len(names)} "
            f"tokens to the text; got {max_length}"
        )
    limit = agreed.cut(max_length)
    if limit < max_length:
        notes.append(f"longest text: {limit} tokens in place of {max_length}, as {agreed.by} takes no more")
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
