"""What a text model looks up in tables, seen from one pass: how many positions and segments it has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from crisp_attention.runs.sources.trying import tried


@dataclass(frozen=True)
class Tables:
    """positions: the longest text that the tables of positions have room for, None without such a table.
    skips_padding: whether padding tokens, known by their number, get no position, as in RoBERTa.
    segments: how many segments can be told apart, 0 if the model adds words in their place, None without a table.
    """

    positions: int | None
    skips_padding: bool
    segments: int | None


class _Lookups(TorchDispatchMode):
    """Remembers every table that is looked up, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            self.seen.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))


def tables_of(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tables:
    """Run the model on one text of two tokens or more, all of segment 0, and see what it looks up.

    A table of positions is one in which consecutive rows are read, whatever its name and wherever the model begins
    to count: after the index of padding as RoBERTa, or at 2 as BART. Raises OptionError as `tried` does.
    """
    words = words_of(model)
    table_of_words = None if words is None else words.weight.data_ptr()
    ids, positions, longest, segments = batch["input_ids"], {}, [], []
    for table, rows in _lookups(model, batch):
        if table.data_ptr() != table_of_words and _consecutive(rows, ids):
            positions[table.data_ptr()] = rows
            longest.append(len(table) - int(rows.flatten()[0]))
        elif "token_type_ids" in batch and not rows.any() and not torch.equal(rows, ids):
            segments.append(0 if table.data_ptr() == table_of_words else len(table))
    skips = False
    if positions and words is not None and words.padding_idx is not None:
        padded = torch.cat([torch.full_like(ids[:, :1], words.padding_idx), ids[:, 1:]], dim=1)
        again = _lookups(model, {**batch, "input_ids": padded})
        skips = any(not torch.equal(rows, positions.get(table.data_ptr(), rows)) for table, rows in again)
    return Tables(min(longest, default=None), skips, min(segments, default=None))


def _lookups(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    with _Lookups() as lookups, tried(model, "a text as its tokenizer encodes it"):
        model(**batch)
    length = batch["input_ids"].shape[1]  # some models pad what they get
    return [(table, rows[..., :length]) for table, rows in lookups.seen if rows.shape[-1] >= length]


def _consecutive(rows: Tensor, ids: Tensor) -> bool:
    return bool((rows == rows[..., :1] + torch.arange(ids.shape[1], device=rows.device)).all())


def words_of(model: PreTrainedModel) -> nn.Embedding | None:
    """The table of the vocabulary; None for models that read characters or numbers of their own."""
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Embedding) else None
