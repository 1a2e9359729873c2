"""A share of the row: how many keys a sparsity leaves, and taking exactly that many."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crisp_attention.rules.base import Rule

# (1 - 0.7) * 10 is 3.0000000000000004 in binary: without this, ceil makes it 4.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ShareRule(Rule):
    """A rule that keeps k = max(min_keep, ceil((1 - sparsity) * n)) of the n keys a row sees."""

    sparsity: float = 0.8
    min_keep: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, bool) or not isinstance(self.sparsity, (int, float)):
            raise TypeError(f"sparsity must be a number in [0, 1), got {self.sparsity!r}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}")
        if isinstance(self.min_keep, bool) or not isinstance(self.min_keep, int) or self.min_keep < 1:
            raise ValueError(f"min_keep must be a whole number of at least 1, got {self.min_keep!r}")

    def count(self, visible: Tensor) -> Tensor:
        """k of every row, int64 (..., L, 1), from the number of keys the row sees."""
        seen = visible.sum(dim=-1, keepdim=True)
        exact = torch.float32 if seen.device.type == "mps" else torch.float64
        share = ((1 - self.sparsity) * seen.to(exact) - ROUNDING).ceil().long()
        return torch.minimum(share.clamp(min=self.min_keep), seen)

    def keep_largest(self, ranked: Tensor, visible: Tensor) -> Tensor:
        """Exactly k visible entries of each row, the largest; among equals the lower index wins.

        A row whose scores hold NaN keeps all it sees, so that the NaN reaches the output.
        """
        ranked = torch.where(visible, ranked, -torch.inf)
        count = self.count(visible)
        ordered = _sort_rows(ranked)
        first = ranked.shape[-1] - count
        threshold, below = _pick(ordered, first), _pick(ordered, first - 1)
        broken = ordered[..., -1:].isnan()  # NaN is sorted last
        if _on_host(ranked) and not ((below == threshold) | broken).any():
            return ranked >= threshold
        above = ranked > threshold
        tied = (ranked == threshold) & visible
        room = count - above.sum(dim=-1, keepdim=True)
        return above | (tied & (tied.cumsum(dim=-1) <= room)) | (broken & visible)


def _on_host(values: Tensor) -> bool:
    # where looking at values is free and allowed: no transfer, no graph to break, no trace to mislead
    return (
        values.device.type == "cpu"
        and type(values) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )


def _sort_rows(values: Tensor) -> Tensor:
    # numpy's vectorised sort of short float rows beats torch's sort and top-k on CPUs by far
    if _on_host(values):
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


def _pick(ordered: Tensor, index: Tensor) -> Tensor:
    index = index.clamp(0, ordered.shape[-1] - 1)
    return ordered.gather(-1, index.expand(*ordered.shape[:-1], 1))
