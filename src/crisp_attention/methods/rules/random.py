from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.share import ShareRule

MASK32 = 0xFFFFFFFF


def mix(value: Tensor) -> Tensor:
    """A 32-bit integer hash in int64 arithmetic (the multiplier keeps products below 2**63)."""
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & MASK32
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & MASK32
    return value ^ (value >> 16)


def head_seeds(seed: Tensor, heads: int) -> Tensor:
    """A seed for every head, (B or 1, heads, 1, 1), from one seed or one per example."""
    head = torch.arange(heads, device=seed.device)[None, :, None, None]
    return mix(mix(seed & MASK32) + head)


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
        draw = (
            mix(mix(rows.seed + rows.query_positions) + rows.key_positions) >> 8
        )  # 24 bits: exact in float32
        return keep_largest(draw.to(torch.float32).expand_as(rows.scores), visible, self.count(visible))
