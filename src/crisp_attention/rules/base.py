from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Rule(ABC):
    """What a query keeps of the keys it sees: a decision on one row of scores."""

    name: ClassVar[str]
    uses_positions: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False

    @abstractmethod
    def keep(self, scores: Tensor, visible: Tensor, valid: Tensor, seed: Tensor | None) -> Tensor:
        """Kept pairs, bool (B, H, L, S), a subset of `visible`.

        `scores` (B, H, L, S), float32 or better; `visible`, a subset of `valid`, both bool with full
        L and S, broadcast to it; `seed` int64, () or (B, 1, 1, 1), given only to rules with `uses_seed`.
        """
