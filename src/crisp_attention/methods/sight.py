"""Pairs that see each other by numbers that tokens have, so that no pair of tokens is held."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["codes", "members", "points"]
WORD = 32


@dataclass(frozen=True)
class Traits:
    """Numbers of queries (B, H, L, R) and of keys (B, H, S, R) by which they see each other.

    kind:

    - `codes`: whole numbers, one of which is equal for both; with a negative one a token sees, and is seen by, all.
    - `members`: the groups that each is in, bool, one of which they have in common.
    - `points`: places whose squared distance is less than the `threshold`, or NaN.
    """

    kind: Kind
    query: Tensor
    key: Tensor
    threshold: float = 0.0

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Those of queries (B, H, L, R) and keys (B, H, R, S): int32, members as bits of words, or float32."""
        query, key = self.query, self.key
        if self.kind == "members":
            query, key = _words(query), _words(key)
        dtype = torch.float32 if self.kind == "points" else torch.int32
        return query.to(dtype).contiguous(), key.to(dtype).transpose(-1, -2).contiguous()


def _words(member: Tensor) -> Tensor:
    count = member.shape[-1]
    filled = torch.nn.functional.pad(member, (0, -count % WORD)).unflatten(-1, (-1, WORD))
    weight = 2 ** torch.arange(WORD, device=member.device)
    return (filled * weight).sum(dim=-1).to(torch.int32)


@dataclass(frozen=True)
class Draw:
    """Keys that every row draws by a hash: `seeds` (1, H, 1, 1) as `Rows.head_seeds` gives them.

    With a `sparsity`, so many of the row's keys as `share_count` leaves, the own one among them; else `blocks` of
    `size` keys for every `size` queries.
    """

    seeds: Tensor
    sparsity: float | None = None
    blocks: int = 0
    size: int = 1


@dataclass(frozen=True)
class Sight:
    """Which valid pairs see each other: those at most `reach` apart, by what tokens have in common, and by a draw.

    The `first` tokens see everything and are seen by all, and so do the `last` ones where some queries stand before the
    end of their row. A reach of -1 shows not even a query's own token.
    """

    reach: int
    first: int = 0
    last: int = 0
    traits: Traits | None = None
    draw: Draw | None = None
