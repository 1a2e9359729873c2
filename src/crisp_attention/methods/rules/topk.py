from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rules.share import ShareRule


@dataclass(frozen=True)
class TopK(ShareRule):
    """Keep the k keys with the largest scores (Crisp Attention, arXiv 2508.06016).

    `sparsity` is the share of the row's valid keys that is dropped, in [0, 1);
    k = max(min_keep, ceil((1 - sparsity) * n_valid)). `TopK(keep=16)` keeps that many, or all of a
    shorter row. Equal scores: the lower key index wins.
    """

    name: ClassVar[str] = "topk"

    def select(self, scores: Tensor, visible: Tensor, valid: Tensor, seed: Tensor | None) -> Tensor:
        if self.sparsity == 0:
            return visible.expand_as(scores)
        return keep_largest(scores, visible, self.count(visible))
