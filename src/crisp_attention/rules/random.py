from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.pairs import key_ranks, query_ranks
from crisp_attention.rules.share import ShareRule

MASK32 = 0xFFFFFFFF


def mix(value: Tensor) -> Tensor:
    """A 32-bit integer hash in int64 arithmetic (the multiplier keeps products below 2**63)."""
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & MASK32
    value = ((value ^ (value >> 16)) * 0x45D9F3B) & MASK32
    return value ^ (value >> 16)


@dataclass(frozen=True)
class RandomK(ShareRule):
    """Keep k keys drawn at random: the control that tells "which keys" from "fewer keys".

    Takes as many keys as `TopK`. The draw is a hash of seed, head and the positions of query and
    key among the valid keys of the row, so padding, batch-mates and a key/value cache do not change
    it. (In a model with a sliding window, all rows whose window is full share one pattern.)
    """

    name: ClassVar[str] = "random"
    uses_positions: ClassVar[bool] = True
    uses_seed: ClassVar[bool] = True

    def keep(self, scores: Tensor, visible: Tensor, valid: Tensor, seed: Tensor | None) -> Tensor:
        if self.sparsity == 0:
            return visible.expand_as(scores)
        if seed is None:
            raise ValueError("RandomK needs a seed, got None")
        head = torch.arange(scores.shape[1], device=scores.device)[:, None, None]
        row = mix(mix(mix(seed & MASK32) + head) + query_ranks(valid))
        draw = mix(row + key_ranks(valid)) >> 8  # 24 bits: exact in float32
        return self.keep_largest(draw.to(torch.float32).expand_as(scores), visible)
