from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule


@dataclass(frozen=True)
class Dense(Rule):
    """Keep every visible key: the ordinary softmax attention."""

    name: ClassVar[str] = "dense"

    def drops_nothing(self, keys: int | None = None) -> bool:
        return True

    def select(self, rows: Rows, visible: Tensor) -> Tensor:
        return visible.expand_as(rows.scores)
