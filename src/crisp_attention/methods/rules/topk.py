from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.share import ShareRule
from crisp_attention.methods.rules.topk_topp import TopKTopP
from crisp_attention.methods.rules.topp import TopP


@dataclass(frozen=True)
class TopK(ShareRule):
    """Keep the k keys with the largest scores (Crisp Attention, arXiv 2508.06016).

    Equal scores: the lower key index wins.

    Parameters
    ----------
    sparsity
        The share of a row's keys that is dropped, in [0, 1), by default 0.8: of n keys
        k = max(min_keep, ceil((1 - sparsity) * n)) are kept.
    min_keep
        At least this many keys are kept.
    keep
        In place of both: this many keys are kept, or all of a shorter row.
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> values = torch.eye(4)[None, None]  # the output is the row of weights
    >>> crisp.attention(query, key, values, crisp.TopK(sparsity=0.5))
    tensor([[[[0.7311, 0.2689, 0.0000, 0.0000]]]])
    """

    name: ClassVar[str] = "topk"

    def __or__(self, other: TopP) -> TopKTopP:
        """The rule that keeps what either keeps."""
        if not isinstance(other, TopP):
            return NotImplemented
        if self.temperature != other.temperature:
            raise ValueError(
                f"both rules need the same temperature, got {self.temperature!r} and {other.temperature!r}"
            )
        return TopKTopP(
            self.sparsity, self.min_keep, self.keep, mass=other.mass, temperature=self.temperature
        )

    __ror__ = __or__

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.sparsity == 0:
            return visible.expand_as(rows.scores)
        return keep_largest(rows.scores, visible, self.count(visible))
