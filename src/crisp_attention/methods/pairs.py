"""Valid pairs: which query may attend to which key at all.

A valid-pair mask is boolean, True where query i may see key j, and broadcasts to (B, H, L, S).
"""

import torch
from torch import Tensor

# Additive masks mark a forbidden pair by a large negative number, which differs between libraries
# (finfo.min, -1e9, -1e4). At or below this value the softmax weight is exactly 0 in every dtype.
FORBIDDEN = -1e4


def split_mask(mask: Tensor | None, name: str = "attention_mask") -> tuple[Tensor | None, Tensor | None]:
    """Split an attention mask into (valid pairs, additive bias), each None where there is none.

    `mask` is boolean (True = attend) or additive floating point, as in torch's SDPA; additive
    entries of -1e4 and below mean "not valid". Raises TypeError, with the mask's `name`, for any other dtype.
    """
    if mask is None:
        return None, None
    if mask.dtype == torch.bool:
        return mask, None
    if not mask.is_floating_point():
        raise TypeError(f"{name} must be bool (True = attend) or floating point (additive), got {mask.dtype}")
    valid = ~(mask <= FORBIDDEN)  # so that NaN stays, and reaches the output
    return valid, mask.masked_fill(~valid, 0.0)


def causal_mask(queries: int, keys: int, device: torch.device, first_query: int = 0) -> Tensor:
    """(1, 1, L, S): True where j <= i + first_query; at 0 aligned at the upper left as in torch's SDPA."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(first_query)[None, None]


def span_mask(span: Tensor, keys: int) -> Tensor:
    """(B, 1, 1, S): True from each example's first valid key up to the one after its last, `span` (B, 2)."""
    place = torch.arange(keys, device=span.device)
    return ((place >= span[:, :1]) & (place < span[:, 1:]))[:, None, None]


def key_ranks(valid: Tensor) -> Tensor:
    """1-based position of each key among the valid keys of its row, (..., L, S)."""
    return valid.cumsum(dim=-1)


def own_keys(valid: Tensor) -> Tensor:
    """Index of the key that is query i's own token, (..., L, 1), in self-attention.

    The last query belongs to the last key; in a static key/value cache, where unused slots
    follow, to the last valid one. Independent of padding only through `key_ranks`.
    """
    queries, keys = valid.shape[-2:]
    index = torch.arange(keys, device=valid.device)
    last_valid = (valid * index).amax(dim=-1, keepdim=True)
    aligned = torch.arange(keys - queries, keys, device=valid.device).clamp(min=0)[:, None]
    return torch.minimum(aligned, last_valid)


def query_ranks(valid: Tensor) -> Tensor:
    """1-based position of each query's own token among the valid keys of its row, (..., L, 1)."""
    return key_ranks(valid).gather(-1, own_keys(valid))


def valid_queries(valid: Tensor) -> Tensor:
    """(..., L): False for queries that are padding themselves.

    Masks only mark padded *keys*, so a padded query still has a full row. Of several queries, one is real
    when its own key is seen by anyone: the queries stand in a row, at the end of the keys or, in a static
    key/value cache, before its unused slots. A single query is decoding, and real.
    """
    queries, keys = valid.shape[-2:]
    rows = valid.any(dim=-1)
    if not 1 < queries <= keys:
        return rows
    index = torch.arange(keys, device=valid.device)
    last_valid = (valid * index).amax(dim=-1)
    first_own = (last_valid - index[:queries]).amax(dim=-1, keepdim=True).clamp(max=keys - queries)
    return rows & valid.any(dim=-2).gather(-1, first_own + index[:queries])
