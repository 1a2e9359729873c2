from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number
from crisp_attention.methods.ranking import ROUNDING, keep_largest, sort_rows, widest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule

COARSE = 2**12


@dataclass(frozen=True)
class TopP(Rule):
    """Keep the fewest keys whose softmax weight reaches `mass`; nucleus attention.

    The weight is that of the softmax over all keys the row sees, without attention sinks. Equal
    scores: the lower key index wins. The sparsity follows from the data.

    Parameters
    ----------
    mass
        The weight that the kept keys have together, in (0, 1].
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> values = torch.eye(4)[None, None]  # the output is the row of weights
    >>> crisp.attention(query, key, values, crisp.TopP(0.8))
    tensor([[[[0.7311, 0.2689, 0.0000, 0.0000]]]])
    """

    mass: float

    name: ClassVar[str] = "topp"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mass", self.mass, "(0, 1]")

    def drops_nothing(self, keys: int | None = None) -> bool:
        return self.mass == 1

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.mass == 1:
            return visible.expand_as(rows.scores)
        return keep_largest(rows.scores, visible, mass_count(rows, visible, self.mass))


def mass_count(rows: Rows, visible: Tensor, mass: float) -> Tensor:
    """How many of the keys that a row sees, the largest first, reach the mass; int64 (..., L, 1)."""
    ranked = torch.where(visible, rows.scores, -torch.inf).to(widest(rows.scores))
    falling = sort_rows(ranked).flip(-1)
    # -inf where a row sees nothing: it has to stay finite
    top = falling[..., :1].nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=0.0)
    weights = (falling - top).exp()
    reached = weights.cumsum(dim=-1) / weights.sum(dim=-1, keepdim=True)
    # in two parts, of which nothing is lost in float32: ONNX rounds constants to it
    coarse = round(mass * COARSE) / COARSE
    short = reached - coarse < mass - ROUNDING - coarse
    count = short.sum(dim=-1, keepdim=True) + 1
    return torch.minimum(count, visible.sum(dim=-1, keepdim=True))
