"""The blocks that `BlockTopK` chooses in self-attention without a causal mask, found without L × L scores."""

import torch
from torch import Tensor

from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.layouts.block_topk import only_finite
from crisp_attention.methods.ranking import keep_largest, share_count


def only_keys(valid: Tensor) -> bool:
    """Whether a mask of pairs (·, ·, ·, S) says the same to all heads and queries, as far as strides tell."""
    return all(valid.shape[dim] == 1 or valid.stride(dim) == 0 for dim in (1, 2))


def front(present: Tensor) -> Tensor:
    """(B, L): the tokens' indices with those that are `present` (B, L) first, else in their order."""
    return (~present).int().argsort(dim=-1, stable=True)


def choose(
    query: Tensor, key: Tensor, layout: BlockTopK, scale: float, lengths: Tensor | None = None
) -> Tensor:
    """Which of its n blocks of keys each block of queries sees, bool (B, H, n, n).

    `query` (B, H, L, D), `key` (B, G, L, D); an example's real tokens come first, `lengths` (B,) of
    them or all. Costs L · D and (L / block_size)² · D. The choice is that of `BlockTopK.visible`;
    blocks without a real token see nothing and are seen by nobody.
    """
    with torch.no_grad():
        batch, groups, length, _ = key.shape
        size = layout.block_size
        count = -(-length // size)
        if lengths is not None:
            lengths = lengths[:, None, None, None]
        block = torch.arange(count, device=key.device)
        present = block * size < (length if lengths is None else lengths)
        present = present.expand(batch, 1, 1, count)
        queries = _means(query, size, lengths).unflatten(1, (groups, -1))
        ranked = (queries @ _means(key, size, lengths)[:, :, None].transpose(-1, -2)).flatten(1, 2) * scale
        real = present.transpose(-1, -2)
        if layout.sparsity == 0:
            return (present & real).expand_as(ranked)
        near = (block - block[:, None]).abs() < layout.local_blocks
        forced = present & ((block < layout.sink_blocks) | near)
        ranked = torch.where(forced, torch.inf, only_finite(ranked))
        share = share_count(present.sum(dim=-1, keepdim=True), layout.sparsity)
        kept = keep_largest(
            ranked, present.expand_as(ranked), torch.maximum(share, forced.sum(-1, keepdim=True))
        )
        return kept & real


def listed(kept: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each block of queries sees (…, n), and which, first and ascending, (…, n, n); int32."""
    order = (~kept).int().argsort(dim=-1, stable=True)
    return kept.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)


def _means(states: Tensor, size: int, lengths: Tensor | None) -> Tensor:
    """Mean of each block's real tokens, (B, H, n, D), in float32 or better."""
    exact = torch.promote_types(states.dtype, torch.float32)
    if lengths is not None:
        place = torch.arange(states.shape[2], device=states.device)[:, None]
        states = torch.where(place < lengths, states, 0.0)
    whole = states.shape[2] // size
    sums = states[:, :, : whole * size].unflatten(2, (whole, size)).sum(dim=3, dtype=exact)
    rest = states[:, :, whole * size :].sum(dim=2, keepdim=True, dtype=exact)
    if states.shape[2] % size:
        sums = torch.cat([sums, rest], dim=2)
    first = torch.arange(sums.shape[2], device=states.device)[:, None] * size
    tokens = states.shape[2] if lengths is None else lengths
    return sums / (tokens - first).clamp(1, size)
