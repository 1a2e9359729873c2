"""Every split as the model reads it, before anything is trained: what cannot be read is found here."""

from dataclasses import replace

from datasets import Dataset

from crisp_attention.runs.data import Task
from crisp_attention.runs.data.tokens import WHOLE, check_tokens, count_cut
from crisp_attention.runs.sources import Source


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
