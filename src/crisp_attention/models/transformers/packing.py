"""Several sequences packed in one row: which tokens belong to the same one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import find_packed_sequence_indices

# what the arguments of packed batches are called; those of lengths are read over all rows, one after another
QUERY_ENDS, KEY_ENDS, NUMBERS = "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"
ARGUMENTS = frozenset({QUERY_ENDS, KEY_ENDS, NUMBERS, "max_length_q", "max_length_k"})


@dataclass(frozen=True)
class Sequences:
    """The number of the sequence that each query (B or 1, L) and each key (B or 1, S) belongs to."""

    queries: Tensor
    keys: Tensor

    def restrict(self, mask: Tensor | None) -> Tensor:
        """A mask, boolean or additive, without the pairs of tokens of different sequences."""
        together = (self.queries[:, :, None] == self.keys[:, None, :])[:, None]
        if mask is None:
            return together
        if mask.dtype == torch.bool:
            return mask & together
        return mask.masked_fill(~together, torch.finfo(mask.dtype).min)


def told(given: Mapping[str, Any], query: Tensor, key: Tensor) -> Sequences | None:
    """The sequences that a call names by their lengths or numbers, None if it names none.

    Raises ValueError if they are not those of these queries (B, H, L, D) and keys (B, G, S, D).
    """
    queries, keys = given.get(QUERY_ENDS), given.get(KEY_ENDS)
    queries, keys = (keys if queries is None else queries), (queries if keys is None else keys)
    if queries is not None and keys is not None:
        return Sequences(_numbered(QUERY_ENDS, queries, query), _numbered(KEY_ENDS, keys, key))
    if (numbers := given.get(NUMBERS)) is None:
        return None
    if not numbers.shape[-1] == query.shape[2] == key.shape[2]:
        raise ValueError(
            f"{NUMBERS} numbers the sequences of {numbers.shape[-1]} tokens, but the attention has {query.shape[2]} "
            f"queries and {key.shape[2]} keys"
        )
    return Sequences(numbers, numbers)


def restarting(positions: Any, query: Tensor, key: Tensor) -> Sequences | None:
    """The sequences that begin wherever positions (B or 1, L) do not go on by one, None if there is only one."""
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return None
    if not positions.shape[1] == query.shape[2] == key.shape[2]:
        return None
    numbers = find_packed_sequence_indices(positions)
    return None if numbers is None else Sequences(numbers, numbers)


def _numbered(name: str, ends: Tensor, states: Tensor) -> Tensor:
    batch, _, length, _ = states.shape
    tokens = torch.arange(batch * length, device=states.device)
    ends = ends.flatten().to(tokens)
    if not torch.compiler.is_compiling() and (last := int(ends[-1])) != batch * length:
        raise ValueError(f"{name} ends at {last}, but there are {batch} x {length} tokens")
    return torch.searchsorted(ends, tokens, right=True).reshape(batch, length)
