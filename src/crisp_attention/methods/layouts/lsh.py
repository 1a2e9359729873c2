from dataclasses import dataclass, replace
from math import tau
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.hashing import mix
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.layouts.sparsefinder.fixed import check_fixed, fixed_pairs, fixed_sight
from crisp_attention.methods.ranking import widest
from crisp_attention.methods.rows import Rows, repeat_heads
from crisp_attention.methods.sight import Sight, Traits

FEW = 2**20  # numbers that are hashed at once


@dataclass(frozen=True)
class LSH(Layout):
    """The keys that fall into the query's bucket of a locality-sensitive hash (Reformer, arXiv 2001.04451, section 2).

    A query or key x falls into the bucket argmax([xR; -xR]), R of buckets / 2 columns drawn from the standard normal
    distribution; the length of x changes no bucket. A pair is visible if both share the bucket in one round at least,
    and every query sees its own key. Every head and round has an R of its own, a hash of seed and head, drawn anew at
    each call: there is nothing to train or to save. A query that is not finite sees every key, and such a key is
    seen by every query.
    Unlike products, the vectors of a model with rotary positions depend on where a sequence begins: packed or padded
    on the left, it needs `position_ids` that start with each sequence, as `generate` passes them.

    Parameters
    ----------
    buckets
        How many there are, an even number; a single one shows everything.
    rounds
        How many hashes there are; more of them show more.
    seed
        Of the draw.
    window, global_tokens
        A band around the query's own token, and tokens at the ends that see everything and are seen by all, as in
        `Sparsefinder`; by default neither.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = torch.tensor([[1.0, 0.2], [2.0, 0.4], [-1.0, -0.2], [-3.0, -0.6]])[None, None]
    >>> (crisp.attention(query, key, torch.eye(4)[None, None], crisp.LSH(buckets=2)) > 0)[0, 0].int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    """

    buckets: int = 8
    rounds: int = 1
    seed: int = 0
    window: int = 0
    global_tokens: int = 0

    name: ClassVar[str] = "lsh"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("buckets", self.buckets, 1)
        if self.buckets > 1 and self.buckets % 2:
            raise ValueError(f"buckets must be 1 or an even whole number, got {self.buckets!r}")
        check_whole("rounds", self.rounds, 1)
        check_whole("seed", self.seed, 0)
        check_fixed(self.window, self.global_tokens)

    @property
    def learned(self) -> "LSH":
        """The same without window and global tokens."""
        return replace(self, window=0, global_tokens=0)

    def shows_everything(self, keys: int | None = None) -> bool:
        return self.buckets == 1

    def visible(self, rows: Rows) -> Tensor:
        if self.buckets == 1:
            return rows.valid
        query, key = self._both(rows)
        query, key = query[..., :, None, :], key[..., None, :, :]
        shared = ((query == key) | (query < 0) | (key < 0)).any(dim=-1)
        own = rows.key_positions == rows.query_positions
        around = fixed_pairs(rows, self.window, self.global_tokens)
        return rows.valid & (shared | own | around)

    def sight(self, rows: Rows) -> Sight | None:
        if self.buckets == 1:
            return None
        traits = Traits("codes", *self._both(rows))
        return fixed_sight(traits, self.window, self.global_tokens, own=True)

    def _both(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The buckets of queries and of keys."""
        rotations = self._rotations(rows)
        keys = repeat_heads(rows.key, rows.query.shape[1] // rows.key.shape[1])
        return self._buckets(rows.query, rotations), self._buckets(keys, rotations)

    def _buckets(self, states: Tensor, rotations: Tensor) -> Tensor:
        """The bucket of each of the states (B, H, N, D) in each round, (B, H, N, rounds); -1 if not finite."""
        # head by head where there are many: in float64 all states would take twice their memory
        whole = torch.compiler.is_compiling() or states.numel() <= FEW
        pairs = (
            [(states, rotations)] if whole else zip(states.split(1, 1), rotations.split(1, 1), strict=True)
        )
        return torch.cat([self._buckets_of(*each) for each in pairs], dim=1)

    def _buckets_of(self, states: Tensor, rotations: Tensor) -> Tensor:
        turned = (states.to(rotations.dtype) @ rotations).unflatten(-1, (self.rounds, self.buckets // 2))
        bucket = torch.cat([turned, -turned], dim=-1).argmax(dim=-1)
        return torch.where(turned.isfinite().all(dim=-1), bucket, -1)

    def _rotations(self, rows: Rows) -> Tensor:
        """R of all rounds side by side, (1, H, D, rounds * buckets / 2): normal by the method of Box and Muller."""
        device, width = rows.query.device, rows.query.shape[-1]
        column = torch.arange(self.rounds * self.buckets // 2, device=device)
        row = torch.arange(2 * width, device=device)[:, None]
        hashed = mix(mix(rows.head_seeds(self.seed) + column) + row)
        uniform = (hashed.to(widest(rows.query)) + 1) / 2**32
        first, second = uniform[..., :width, :], uniform[..., width:, :]
        return (-2 * first.log()).sqrt() * (tau * second).cos()
