from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule


@dataclass(frozen=True)
class Dense(Rule):
    """Keep every visible key: the ordinary softmax attention.

    Parameters
    ----------
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query, key, value = torch.randn(3, 1, 2, 8, 4)
    >>> dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    >>> torch.allclose(crisp.attention(query, key, value, crisp.Dense()), dense, atol=1e-6)
    True
    """

    name: ClassVar[str] = "dense"

    def drops_nothing(self, keys: int | None = None) -> bool:
        return True

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible.expand_as(rows.scores)
