"""A share of the row: how many keys a sparsity leaves, and taking exactly that many."""

import math
from dataclasses import dataclass

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

    def most(self, keys: int) -> int:
        """The largest k that a row of `keys` keys can have."""
        return min(keys, max(self.min_keep, math.ceil((1 - self.sparsity) * keys - ROUNDING)))

    def keep_largest(self, ranked: Tensor, visible: Tensor) -> Tensor:
        """Exactly k visible entries of each row, the largest; among equals the lower index wins.

        A row whose scores hold NaN keeps all it sees, so that the NaN reaches the output.
        """
        ranked = ranked.masked_fill(~visible, -torch.inf)
        count = self.count(visible)
        top = ranked.topk(self.most(ranked.shape[-1]), dim=-1).values
        last = (count - 1).clamp(min=0).expand(*top.shape[:-1], 1)
        threshold = top.gather(-1, last)
        above = ranked > threshold
        tied = (ranked == threshold) & visible
        room = count - above.sum(dim=-1, keepdim=True)
        kept = above | (tied & (tied.cumsum(dim=-1) <= room))
        return kept | (top[..., :1].isnan() & visible)  # topk ranks NaN first
