from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.band import Band
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.rows import Rows


@dataclass(frozen=True)
class Window(Layout):
    """A band of `width` keys centred on the query's own token, and `global_tokens` first tokens.

    Positions count valid tokens, so padding does not move the band. A global token sees every
    valid key and is seen by every query (Longformer, arXiv 2004.05150).

    Parameters
    ----------
    width
        Keys in the band, an odd number: width // 2 on each side of the query's own token.
    global_tokens
        How many tokens at the beginning are global.
    dilation
        Tokens from one key of the band to the next.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = torch.ones(1, 1, 4, 2)
    >>> (crisp.attention(query, key, torch.eye(4)[None, None], crisp.Window(3)) > 0)[0, 0].int()
    tensor([[1, 1, 0, 0],
            [1, 1, 1, 0],
            [0, 1, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    """

    width: int
    global_tokens: int = 0
    dilation: int = 1

    name: ClassVar[str] = "window"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (
            not isinstance(self.width, int)
            or isinstance(self.width, bool)
            or self.width < 1
            or self.width % 2 == 0
        ):
            raise ValueError(f"width must be an odd whole number of at least 1, got {self.width!r}")
        check_whole("global_tokens", self.global_tokens, 0)
        check_whole("dilation", self.dilation, 1)

    def shows_everything(self, keys: int | None = None) -> bool:
        if keys is None:
            return False
        others = keys - self.global_tokens
        return others <= 1 or (self.dilation == 1 and self.width // 2 >= others - 1)

    def visible(self, rows: Rows) -> Tensor:
        return rows.valid & self._band.pairs(rows.query_positions, rows.key_positions)

    def blocks(self, rows: Rows) -> BlockGraph | None:
        return BlockGraph.of_band(rows, self._band)

    @property
    def _band(self) -> Band:
        return Band(self.dilation * (self.width // 2), self.dilation, global_tokens=self.global_tokens)
