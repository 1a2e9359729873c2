from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.rows import Rows


@dataclass(frozen=True)
class Full(Layout):
    """Every valid pair."""

    name: ClassVar[str] = "full"

    def shows_everything(self, keys: int | None = None) -> bool:
        return True

    def visible(self, rows: Rows) -> Tensor:
        return rows.valid
