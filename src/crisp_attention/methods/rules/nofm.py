from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.pairs import key_ranks
from crisp_attention.methods.ranking import grouped, keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule


@dataclass(frozen=True)
class NofM(Rule):
    """Keep the `n` keys with the largest scores of every `m` neighbouring keys that the row sees.

    Exactly n of each full group; of a last group of r < m keys ceil(r * n / m), so at least one.
    Equal scores: the lower key index wins. Groups count the keys a row sees: padding moves none.

    Parameters
    ----------
    n
        Keys that are kept of a group, at least 1.
    m
        Keys in a group, at least n.
    temperature
        The factor of the scores: above 1 the attention is sharper; "learned" by every head.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> values = torch.eye(4)[None, None]  # the output is the row of weights
    >>> crisp.attention(query, key, values, crisp.NofM(1, 2))
    tensor([[[[0.8808, 0.0000, 0.1192, 0.0000]]]])
    """

    n: int
    m: int

    name: ClassVar[str] = "nofm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("n", self.n, 1)
        check_whole("m", self.m, self.n)

    def drops_nothing(self, keys: int | None = None) -> bool:
        # a first group that is not full keeps ceil(keys * n / m) of its keys
        return self.n == self.m or (keys is not None and keys * (self.m - self.n) < self.m)

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.n == self.m:
            return visible.expand_as(rows.scores)
        ranks = key_ranks(visible)
        moved = grouped(rows.scores, ranks, visible, self.m, -torch.inf)
        slot = torch.arange(moved.shape[-2] * self.m, device=visible.device)
        taken = (slot < visible.sum(dim=-1, keepdim=True)).unfold(-1, self.m, self.m)
        count = -(-taken.sum(dim=-1, keepdim=True) * self.n // self.m)
        kept = keep_largest(moved, taken.expand_as(moved), count)
        # side by side by place in the group: what flatten does to the last two dimensions is nothing that
        # torch.export can prove for all lengths
        place = (ranks - 1).clamp(min=0)
        index = place % self.m * kept.shape[-2] + place // self.m
        return visible & torch.cat(kept.unbind(dim=-1), dim=-1).gather(-1, index.expand_as(rows.scores))
