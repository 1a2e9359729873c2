"""The mean key of every block of a growing key/value cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crisp_attention.methods.pairs import key_ranks, own_keys
from crisp_attention.methods.ranking import compact


@dataclass
class BlockMeans:
    """Sums of the keys of each block, (B, G, n, D) in float32 or better, for the keys seen so far.

    `row` (B, 1, 1, S) says which keys those are; blocks count valid keys, so padding is in none.
    """

    size: int
    sums: Tensor
    row: Tensor

    @classmethod
    def of(cls, key: Tensor, valid: Tensor, size: int) -> "BlockMeans":
        """Pool all keys (B, G, S, D) that the one query sees; `valid` is (B, 1, 1, S)."""
        ranks = key_ranks(valid)
        exact = torch.promote_types(key.dtype, torch.float32)
        blocks = -(-key.shape[2] // size)
        moved = compact(key.to(exact).transpose(2, 3), ranks, valid, blocks * size, 0.0)
        return cls(size, moved.unflatten(-1, (blocks, size)).sum(dim=-1).transpose(2, 3), valid)

    def follows(self, valid: Tensor) -> bool:
        """Whether the query sees what the last one saw, and one further key, its own."""
        past = self.row.shape[-1]
        if valid.shape[0] != self.row.shape[0] or valid.shape[-1] < past:
            return False
        own = own_keys(valid)
        before = valid.scatter(-1, own, False)
        same = (before[..., :past] == self.row).all() and not before[..., past:].any()
        return bool(same and valid.gather(-1, own).all())

    def add(self, key: Tensor, valid: Tensor) -> None:
        """Take in the key that the query added; `follows(valid)` must hold."""
        blocks = -(-key.shape[2] // self.size)
        if grown := blocks - self.sums.shape[2]:
            self.sums = torch.nn.functional.pad(self.sums, (0, 0, 0, grown))
        own = own_keys(valid)
        block = (key_ranks(valid).gather(-1, own) - 1) // self.size
        shape = (*key.shape[:2], 1, key.shape[3])
        new = key.gather(2, own.expand(shape)).to(self.sums.dtype)
        self.sums = self.sums.scatter_add(2, block.expand(shape), new)
        self.row = valid

    def means(self) -> Tensor:
        """The mean key of each block, (B, G, n, D); zeros for blocks without keys."""
        first = torch.arange(self.sums.shape[2], device=self.sums.device) * self.size
        keys = (self.row.sum(dim=-1, keepdim=True) - first[:, None]).clamp(1, self.size)
        return self.sums / keys
