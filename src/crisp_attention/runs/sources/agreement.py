"""What a model accepts from its tokenizer: arguments, segments, and tokens up to a length."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError
from crisp_attention.runs.sources.source import tried

SHORT = 16  # tokens of an example for models that cannot read fewer
UNLIMITED = 2**31 - 1  # more tokens than any text has


@dataclass(frozen=True)
class Tables:
    """positions: the longest text that the tables of positions have room for, None without such a table.
    skips_padding: whether padding tokens, known by their number, get no position, as in RoBERTa.
    segments: how many segments can be told apart, 0 if the model adds words in their place, None without a table.
    """

    positions: int | None
    skips_padding: bool
    segments: int | None


@dataclass(frozen=True)
class Agreement:
    """taken: names of what the model takes of an encoded text.
    least, most: tokens that a text has at least and at most, and `by`, whose limit that is.
    skips_padding: as in `Tables`.
    notes: sentences for the user.
    """

    taken: frozenset[str]
    least: int
    most: int
    by: str
    skips_padding: bool
    notes: tuple[str, ...]

    def cut(self, length: int) -> int:
        """`length` tokens, or fewer where the model or its tokenizer takes fewer."""
        return min(length, self.most)


def agree(model: PreTrainedModel, tokenizer: Any, texts: Sequence[str]) -> Agreement:
    """Find out with an example, of one or two texts, what the model accepts.

    Raises OptionError if the model reads no text, has no embeddings for a token of the example, or takes fewer
    tokens than the shortest text has.
    """
    taken = set(inspect.signature(model.forward).parameters)
    if "input_ids" not in taken:
        raise OptionError(f"{type(model).__name__} reads no text")
    encoded = tokenizer(*texts)
    if not encoded["input_ids"]:
        raise OptionError(f"the tokenizer makes no token of the text {texts[0]!r}")
    check_known(encoded["input_ids"], model, tokenizer)
    least = tokenizer.num_special_tokens_to_add(pair=len(texts) == 2) + len(texts)
    try:
        tables = tables_of(model, _short(model, tokenizer, texts, least, taken))
    except OptionError:
        if len(encoded["input_ids"]) <= least:
            raise
        tables = tables_of(model, _short(model, tokenizer, texts, max(SHORT, least), taken))
    notes = []
    segments = max(encoded.get("token_type_ids", [0]), default=0) + 1
    known = tables.segments if "token_type_ids" in taken else 0
    if known is not None and known < segments:
        taken.discard("token_type_ids")
        if segments > 1:
            notes.append(
                f"segments: left out, as the tokenizer produces {segments} and {type(model).__name__} has "
                f"{known or 'none'}"
            )
    bounds = _bounds(model, tokenizer, tables)
    by = min(bounds, key=lambda each: bounds[each])
    if bounds[by] < least:
        raise OptionError(f"{by} takes {bounds[by]} tokens at most; the shortest text has {least}")
    return Agreement(frozenset(taken), least, bounds[by], by, tables.skips_padding, tuple(notes))


def check_known(tokens: Iterable[int], model: PreTrainedModel, tokenizer: Any) -> None:
    """Raises OptionError if the model has no embeddings for a token."""
    words, largest = words_of(model), max(tokens, default=0)
    if words is not None and largest >= words.num_embeddings:
        name = tokenizer.convert_ids_to_tokens(largest)
        raise OptionError(
            f"the tokenizer's vocabulary does not match the model's: token {name!r} has id {largest}, but the model "
            f"has embeddings for only {words.num_embeddings} ids, from 0"
        )


def _short(
    model: PreTrainedModel, tokenizer: Any, texts: Sequence[str], length: int, taken: set[str]
) -> Mapping[str, torch.Tensor]:
    tokens = tokenizer(*texts, truncation=True, max_length=length)["input_ids"]
    # models that find positions by what is not padding would not count a padding token in the text
    words = words_of(model)
    counted = [token for token in tokens if words is None or token != words.padding_idx] or tokens
    ids = torch.tensor([counted if len(counted) > 1 else 2 * counted])
    given = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {"input_ids": ids} | {name: given[name] for name in given if name in taken}


def _named_positions(model: PreTrainedModel) -> int | None:
    """What the configuration says, if it does: models of rotary or relative positions have no table."""
    named = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return named if named and named > 0 else None


def _bounds(model: PreTrainedModel, tokenizer: Any, tables: Tables) -> dict[str, int]:
    of_model = [each for each in (tables.positions, _named_positions(model)) if each is not None]
    return {
        "the model": min(of_model, default=UNLIMITED),
        "the tokenizer": min(tokenizer.model_max_length, UNLIMITED),
    }


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
