from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.hashing import drawn
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.ranking import keep_largest, share_count, share_is_whole
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.sight import Draw, Sight


@dataclass(frozen=True)
class RandomPairs(Layout):
    """A share of each row's keys, drawn once and for all, with the query's own (BigBird, arXiv 2007.14062, section 2).

    Of n keys max(1, ceil((1 - sparsity) * n)) are visible, as many as `TopK` keeps. The draw is a hash of seed,
    head and the positions of query and key among the valid keys of the row, so padding, batch-mates and a
    key/value cache do not change it. The rule `RandomK` draws anew at every step of training; this does not.

    Parameters
    ----------
    sparsity
        The share of a row's keys that is hidden, in [0, 1).
    seed
        Of the draw.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = torch.ones(1, 1, 6, 2)
    >>> weights = crisp.attention(query, key, torch.eye(6)[None, None], crisp.RandomPairs(sparsity=0.5))
    >>> (weights > 0).sum(-1), (weights > 0)[0, 0].diagonal()
    (tensor([[[3, 3, 3, 3, 3, 3]]]), tensor([True, True, True, True, True, True]))
    """

    sparsity: float = 0.8
    seed: int = 0

    name: ClassVar[str] = "random_pairs"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("sparsity", self.sparsity, "[0, 1)")
        check_whole("seed", self.seed, 0)

    def shows_everything(self, keys: int | None = None) -> bool:
        if self.sparsity == 0 or keys is None:
            return self.sparsity == 0
        return share_is_whole(keys, self.sparsity)

    def visible(self, rows: Rows) -> Tensor:
        if self.sparsity == 0:
            return rows.valid
        queries, keys, valid = rows.query_positions, rows.key_positions, rows.valid
        draw = drawn(rows.head_seeds(self.seed), queries, keys)
        draw = torch.where(keys == queries, torch.inf, draw)
        return keep_largest(
            draw, valid.expand_as(draw), share_count(valid.sum(-1, keepdim=True), self.sparsity)
        )

    def sight(self, rows: Rows) -> Sight | None:
        if self.sparsity == 0:
            return None
        return Sight(-1, draw=Draw(rows.head_seeds(self.seed), self.sparsity))
