"""Pairs that see each other by where they are: numbers in place of a mask."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Band:
    """Distances at which tokens see each other, and tokens that see everything and are seen by all.

    Distances are those below `local`, and the multiples of `dilation` up to `reach` (however large, if None);
    `global_tokens` are the first ones.
    """

    reach: int | None
    dilation: int = 1
    local: int = 0
    global_tokens: int = 0

    def pairs(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether they see each other, by their 1-based positions; a query at 0 precedes all keys."""
        distance = (keys - queries).abs()
        near = distance % self.dilation == 0
        if self.reach is not None:
            near = near & (distance <= self.reach)
        # at 0 the query's own token precedes every valid key, so it is no token of the sequence
        anchors = (keys <= self.global_tokens) | ((queries > 0) & (queries <= self.global_tokens))
        return near | (distance < self.local) | anchors

    def numbers(self, keys: int) -> tuple[int, int, int, int]:
        """Reach among so many keys, dilation, local and global tokens."""
        return keys if self.reach is None else self.reach, self.dilation, self.local, self.global_tokens
