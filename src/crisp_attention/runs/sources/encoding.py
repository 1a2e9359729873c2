"""Encoding every split before training, so that unreadable examples are found early."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from crisp_attention.errors import DataError
from crisp_attention.runs.sources.source import Source
from crisp_attention.runs.task import Task

WHOLE = "whole_length"


def encoded(source: Source, task: Task) -> Task:
    """The task with its splits encoded, and a note on the texts that were cut.

    Raises DataError for a text of which the tokenizer makes no token.
    """
    splits: dict[str, Dataset] = {}
    cut: list[str] = []
    limit = longest = 0
    for name, rows in task.splits.items():
        splits[name] = source.encode(rows)
        if WHOLE not in splits[name].features:
            continue
        check_tokens(name, rows, splits[name], task.text_columns)
        count, left, whole = count_cut(splits[name])
        if count:
            cut.append(f"{count:,} of {len(rows):,} {name}")
            limit, longest = max(limit, left), max(longest, whole)
        splits[name] = splits[name].remove_columns(WHOLE)
    if not cut:
        return replace(task, splits=splits)
    note = f"texts cut to {limit:,} tokens: {', '.join(cut)}; the longest has {longest:,}"
    return replace(task, splits=splits, notes=(*task.notes, note))


def tokenized(split: Dataset, tokenizer: Any, columns: Sequence[str], limit: int) -> Dataset:
    """The split with its texts as token ids, cut to `limit` tokens.

    A column `whole_length` says how many tokens the text of a row has before it is cut; 0 where the
    tokenizer makes no token of a text.
    """
    added = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)

    def tokenize(rows: dict[str, list[str]]) -> Any:
        texts = [rows[column] for column in columns]
        whole = tokenizer(*texts, verbose=False)
        lengths = [len(ids) for ids in whole["input_ids"]]
        wanted = set(range(len(columns)))
        for row, length in enumerate(lengths):
            if not (wanted <= set(whole.sequence_ids(row)) if whole.is_fast else length > added):
                lengths[row] = 0
        if max(lengths) > limit:
            whole = tokenizer(*texts, truncation=True, max_length=limit, verbose=False)
        return {**whole, WHOLE: lengths}

    return split.map(tokenize, batched=True, remove_columns=list(columns))


def check_tokens(split: str, texts: Dataset, encoded: Dataset, columns: Sequence[str]) -> None:
    """Raises DataError when the tokenizer made no token of a text of `texts`, in which `encoded` are the tokens."""
    blank = np.flatnonzero(np.array(encoded[WHOLE][:]) == 0)
    if len(blank):
        row = texts[int(blank[0])]
        found = ", ".join(f"{column} {row[column]!r}" for column in columns)
        raise DataError(
            f"the {split} split has a text of which the tokenizer makes no token in {len(blank):,} of {len(texts):,} "
            f"rows, the first of them row {row['index']} (counting from 0): {found}; expected text in every row"
        )


def count_cut(encoded: Dataset) -> tuple[int, int, int]:
    """How many texts were cut, the number of tokens that the longest text of all has left, and had."""
    lengths = np.array(encoded[WHOLE][:])
    left = pc.list_value_length(encoded.data.column("input_ids")).to_numpy()
    return int((lengths > left).sum()), int(left.max()), int(lengths.max())
