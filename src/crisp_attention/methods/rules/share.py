"""Rules that keep a share of the keys a row sees, or an absolute number of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.ranking import share_count, share_is_whole
from crisp_attention.methods.rules.base import Rule

DEFAULT_SPARSITY = 0.8


@dataclass(frozen=True)
class ShareRule(Rule):
    """A rule that keeps k = max(min_keep, ceil((1 - sparsity) * n)) of the n keys a row sees.

    Or, with `keep` and no sparsity, k = min(keep, n). With neither, the sparsity is 0.8.
    """

    sparsity: float | None = None
    min_keep: int = 1
    keep: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            check_whole("keep", self.keep, 1)
            if self.sparsity is not None or self.min_keep != 1:
                raise ValueError(
                    f"keep={self.keep} cannot be combined with sparsity or min_keep, "
                    f"got sparsity={self.sparsity} and min_keep={self.min_keep}"
                )
        elif self.sparsity is None:
            object.__setattr__(self, "sparsity", DEFAULT_SPARSITY)
        if self.sparsity is not None:
            check_number("sparsity", self.sparsity, "[0, 1)")
        check_whole("min_keep", self.min_keep, 1)

    def drops_nothing(self, keys: int | None = None) -> bool:
        if self.sparsity == 0 or keys is None:
            return self.sparsity == 0
        if self.sparsity is None:
            return self.keep is not None and self.keep >= keys
        return share_is_whole(keys, self.sparsity) or self.min_keep >= keys

    def count(self, visible: Tensor) -> Tensor:
        """k of every row, int64 (..., L, 1), from the number of keys the row sees."""
        return self.count_of(visible.sum(dim=-1, keepdim=True))

    def count_of(self, seen: Tensor) -> Tensor:
        """k for each number of keys that a row sees, int64, elementwise."""
        if self.sparsity is None:
            return torch.clamp(seen, max=self.keep)
        return share_count(seen, self.sparsity, self.min_keep)
