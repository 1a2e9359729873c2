from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.share import ShareRule


@dataclass(frozen=True)
class TopK(ShareRule):
    """Keep the k keys with the largest scores (Crisp Attention, arXiv 2508.06016).

    `sparsity` is the share of the row's valid keys that is dropped, in [0, 1);
    k = max(min_keep, ceil((1 - sparsity) * n_valid)). `TopK(keep=16)` keeps that many, or all of a
    shorter row. Equal scores: the lower key index wins.
    """

    name: ClassVar[str] = "topk"

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.sparsity == 0:
            return visible.expand_as(rows.scores)
        return keep_largest(rows.scores, visible, self.count(visible))
