from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.rows import Rows


@dataclass(frozen=True)
class Full(Layout):
    """Every valid pair.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.Method(layout=crisp.Full(), rule=crisp.TopK(0.5)) == crisp.parse("topk:sparsity=0.5")
    True
    """

    name: ClassVar[str] = "full"

    def shows_everything(self, keys: int | None = None) -> bool:
        return True

    def visible(self, rows: Rows) -> Tensor:
        return rows.valid
