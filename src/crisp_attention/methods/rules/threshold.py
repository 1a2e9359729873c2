import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule


@dataclass(frozen=True)
class Threshold(Rule):
    """Keep the keys whose softmax weight is at least `epsilon` times the row's largest.

    Whether a key is kept depends on its score and the row's largest alone. Keys that are exactly
    at the threshold are kept. The sparsity follows from the data.

    Parameters
    ----------
    epsilon
        Part of the row's largest weight, in [0, 1].
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> values = torch.eye(4)[None, None]  # the output is the row of weights
    >>> crisp.attention(query, key, values, crisp.Threshold(0.1))  # weights of neighbours differ by a factor of e
    tensor([[[[0.6652, 0.2447, 0.0900, 0.0000]]]])
    """

    epsilon: float

    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, "[0, 1]")

    def drops_nothing(self, keys: int | None = None) -> bool:
        return self.epsilon == 0

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.epsilon == 0:
            return visible.expand_as(rows.scores)
        largest = torch.where(visible, rows.scores, -torch.inf).amax(dim=-1, keepdim=True)
        return visible & ~(rows.scores < largest + math.log(self.epsilon))  # so that NaN keeps the row
