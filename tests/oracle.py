"""What each method means, in float64 and plain loops. Shares no code with the package, only its method objects."""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor


def count(n: int, sparsity: float, min_keep: int) -> int:
    """How many of `n` keys a row keeps; `sparsity` is read as the decimal fraction it is written as."""
    return min(n, max(min_keep, math.ceil((1 - Fraction(str(sparsity))) * n)))


def topk(row: np.ndarray, seen: set[int], sparsity: float, min_keep: int) -> set[int]:
    """The keys with the largest scores; sorted() is stable, so the lower index wins among equals."""
    return set(sorted(sorted(seen), key=lambda j: -row[j])[: count(len(seen), sparsity, min_keep)])


def window(i: int, valid: np.ndarray, width: int, global_tokens: int) -> set[int]:
    """The keys that query `i` sees in a band; positions are 1-based and count the valid keys of the row."""
    queries, keys = valid.shape
    seen = [j for j in range(keys) if valid[i, j]]
    own = min(keys - queries + i, max(seen, default=0))
    here = sum(j <= own for j in seen)
    near = {j for place, j in enumerate(seen, 1) if abs(place - here) <= width // 2 or place <= global_tokens}
    return set(seen) if 1 <= here <= global_tokens else near


def kept(row: np.ndarray, i: int, valid: np.ndarray, method) -> set[int]:
    """The keys that query `i` keeps, under any layout and the rules dense and topk."""
    seen = set(np.flatnonzero(valid[i]))
    if method.layout.name == "window":
        seen = window(i, valid, method.layout.width, method.layout.global_tokens)
    if method.rule.name == "topk":
        return topk(row, seen, method.rule.sparsity, method.rule.min_keep)
    return seen


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    method,
    *,
    scale: float,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and weights in float64, one row at a time."""
    q, k, v = (t.detach().double().numpy() for t in (query, key, value))
    (batch, heads, queries, _), keys = q.shape, k.shape[2]
    shape = (batch, heads, queries, keys)
    allowed = np.broadcast_to(True if valid is None else valid.numpy(), shape)
    added = np.broadcast_to(0.0 if bias is None else bias.detach().double().numpy(), shape)
    output, weights = np.zeros((*shape[:3], v.shape[-1])), np.zeros(shape)
    for b, h, i in np.ndindex(batch, heads, queries):
        group = h // (heads // k.shape[1])
        row = k[b, group] @ q[b, h, i] * scale
        row = (row if softcap is None else softcap * np.tanh(row / softcap)) + added[b, h, i]
        keep = sorted(kept(row, i, allowed[b, h], method))
        others = [] if sinks is None else [sinks[h].item()]
        top = max([*row[keep], *others], default=0.0)
        total = sum(math.exp(x - top) for x in [*row[keep], *others])
        for j in keep:
            weights[b, h, i, j] = math.exp(row[j] - top) / total
        output[b, h, i] = weights[b, h, i] @ v[b, group]
    return torch.from_numpy(output), torch.from_numpy(weights)
