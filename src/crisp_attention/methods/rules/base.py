from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.part import Part
from crisp_attention.methods.ranking import on_host
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.temperature import Temperature, check_temperature

# scores of less than this are dropped by adding the lowest number there is
MODERATE = 1e30


@dataclass(frozen=True)
class Rule(Part):
    """What a query keeps of the keys it sees, and the weight of each: a decision on one row of scores.

    A class with a `name` in its own body is known by it to specs and saved models.

    Parameters
    ----------
    temperature
        The factor by which the products of queries and keys are multiplied: above 1 the attention is sharper, below 1
        flatter. "learned" gives every head its own, which starts at 1 and is trained with the model.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> import crisp_attention as crisp
    >>> @dataclass(frozen=True)
    ... class AboveMean(crisp.Rule):
    ...     def select(self, rows, visible):
    ...         scores = rows.scores.masked_fill(~visible, float("nan"))
    ...         return visible & (rows.scores >= scores.nanmean(-1, keepdim=True))
    >>> query, key = torch.ones(1, 1, 1, 1), torch.tensor([4.0, 3.0, 2.0, 1.0]).reshape(1, 1, 4, 1)
    >>> crisp.attention(query, key, torch.eye(4)[None, None], AboveMean())
    tensor([[[[0.7311, 0.2689, 0.0000, 0.0000]]]])
    """

    temperature: Temperature = field(default=1.0, kw_only=True)

    kind: ClassVar[str] = "rule"
    uses_seed: ClassVar[bool] = False
    zeros_are_dropped: ClassVar[bool] = False  # the weights themselves say what is kept

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    @abstractmethod
    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        """Kept pairs, bool (B, H, L, S), a subset of `visible`.

        `visible`, a subset of `rows.valid`, has full L and S and broadcasts to the scores; the rows have a
        `seed` only for rules with `uses_seed`.
        """

    def drops_nothing(self, keys: int | None = None) -> bool:
        """Whether this is the softmax over all a row sees, for rows of at most `keys` keys, or of any length.

        Known without looking at scores; a rule that has to look at them says False.
        """
        return False

    def weigh(self, rows: Rows, keep: Tensor) -> Tensor:
        """Weights over the kept pairs, zero elsewhere and in rows that keep nothing: the softmax.

        With attention sinks, the rows have one more column of scores, and keep it.
        """
        return masked_softmax(rows.scores, keep)


def masked_softmax(scores: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the kept entries of each row; zeros elsewhere, and in rows that keep nothing.

    As for any softmax, a kept -inf weighs nothing next to larger scores, and a row whose largest kept
    score is not finite is NaN. Entries that are not kept never count, whatever their value.
    """
    some = keep.sum(dim=-1, keepdim=True, dtype=torch.int32) > 0
    if on_host(scores) and scores.numel() and bool(scores.detach().abs().amax() < MODERATE):
        # on CPUs arithmetic is several times as fast as choosing, and gives the same bits
        dropped = keep.to(scores.dtype).sub_(1).mul_(-torch.finfo(scores.dtype).min)
        return (scores + dropped).softmax(dim=-1) * some.to(scores.dtype)
    # a row that keeps nothing must stay finite, forward and backward
    kept = torch.where(keep, scores, torch.where(some, -torch.inf, 0.0))
    return torch.where(keep, kept.softmax(dim=-1), 0.0)
