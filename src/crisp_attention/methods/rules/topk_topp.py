from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number
from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.share import ShareRule
from crisp_attention.methods.rules.topp import mass_count


@dataclass(frozen=True)
class TopKTopP(ShareRule):
    """Keep what `TopK` or `TopP` keeps, whichever is more in a row (SpargeAttention2, arXiv 2602.13515).

    In a flat row a share of the keys holds little of the weight, and in a peaked one few keys hold all of it and the
    others nothing. `TopK(sparsity) | TopP(mass)` is this rule. At least the share 1 - sparsity is kept; how much more
    follows from the data.

    Parameters
    ----------
    sparsity, min_keep, keep
        Those of `TopK`.
    mass
        That of `TopP`, in (0, 1].
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> rule = crisp.TopK(keep=1) | crisp.TopP(0.8)
    >>> rule
    TopKTopP(sparsity=None, min_keep=1, keep=1, mass=0.8)
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> values = torch.eye(4)[None, None]  # the output is the row of weights
    >>> crisp.attention(query, key, values, rule)
    tensor([[[[0.7311, 0.2689, 0.0000, 0.0000]]]])
    """

    mass: float = 0.9

    name: ClassVar[str] = "topk_topp"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mass", self.mass, "(0, 1]")

    def drops_nothing(self, keys: int | None = None) -> bool:
        return self.mass == 1 or super().drops_nothing(keys)

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.drops_nothing():
            return visible.expand_as(rows.scores)
        count = torch.maximum(self.count(visible), mass_count(rows, visible, self.mass))
        return keep_largest(rows.scores, visible, count)
