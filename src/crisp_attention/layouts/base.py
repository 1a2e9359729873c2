from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Layout(ABC):
    """Where a query may look: a choice of pairs made before any score is known."""

    name: ClassVar[str]
    uses_positions: ClassVar[bool] = False

    @abstractmethod
    def visible(self, valid: Tensor) -> Tensor:
        """Visible pairs, a subset of `valid`; both bool and broadcastable to (B, H, L, S)."""
