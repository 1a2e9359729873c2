from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.hashing import drawn
from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.share import ShareRule


@dataclass(frozen=True)
class RandomK(ShareRule):
    """Keep k keys drawn at random: the control that separates "which keys" from "fewer keys".

    Keeps as many keys as `TopK`. The draw is a hash of seed, head and the positions of query and
    key among the valid keys of the row, so padding, batch-mates and a key/value cache do not change
    it. (In a model with a sliding window, all rows whose window is full share one pattern.)

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
    >>> query = key = torch.ones(1, 1, 4, 2)
    >>> weights = crisp.attention(query, key, torch.eye(4)[None, None], crisp.RandomK(sparsity=0.5))
    >>> (weights > 0).sum(-1)
    tensor([[[2, 2, 2, 2]]])
    """

    name: ClassVar[str] = "random"
    uses_positions: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        if self.sparsity == 0:
            return visible.expand_as(rows.scores)
        if rows.seed is None:
            raise ValueError("RandomK needs a seed, got None")
        draw = drawn(rows.seed, rows.query_positions, rows.key_positions)
        return keep_largest(draw.expand_as(rows.scores), visible, self.count(visible))
