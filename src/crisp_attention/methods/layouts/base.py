from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.part import Part


@dataclass(frozen=True)
class Layout(Part):
    """Where a query may look: a choice of pairs made without the whole row of scores."""

    kind: ClassVar[str] = "layout"

    def shows_everything(self, keys: int | None = None) -> bool:
        """Whether a query sees all its valid keys, if they are at most `keys`, or however many they are."""
        return False

    @abstractmethod
    def visible(self, valid: Tensor, products: Tensor, block_products: Tensor | None = None) -> Tensor:
        """Visible pairs, a subset of `valid`; both bool, with full L and S, broadcastable to (B, H, L, S).

        `products` (B, H, L, S): query · key * scale, before softcap and bias. `block_products`
        (B, H, L, ceil(S / block_size)): the same with the mean key of each block, where the caller has them.
        """
