from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.band import Band
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.rows import Rows


@dataclass(frozen=True)
class Strided(Layout):
    """Every `stride`-th key, counted from the query's own, and those less than `local` away.

    The strided pattern of Sparse Transformers (arXiv 1904.10509, section 4.3), both of its heads merged into one
    (section 5.1). Positions count valid tokens, so padding does not move it.

    Parameters
    ----------
    stride
        Tokens from one key to the next.
    local
        Keys nearer than this are all visible, the query's own included; by default `stride`, as in the paper.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = torch.ones(1, 1, 6, 2)
    >>> (crisp.attention(query, key, torch.eye(6)[None, None], crisp.Strided(3, local=2)) > 0)[0, 0].int()
    tensor([[1, 1, 0, 1, 0, 0],
            [1, 1, 1, 0, 1, 0],
            [0, 1, 1, 1, 0, 1],
            [1, 0, 1, 1, 1, 0],
            [0, 1, 0, 1, 1, 1],
            [0, 0, 1, 0, 1, 1]], dtype=torch.int32)
    """

    stride: int = 4
    local: int | None = None

    name: ClassVar[str] = "strided"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("stride", self.stride, 1)
        if self.local is not None:
            check_whole("local", self.local, 1)

    def shows_everything(self, keys: int | None = None) -> bool:
        if self.stride == 1 or keys is None:
            return self.stride == 1
        return all(distance % self.stride == 0 for distance in range(self._local, keys))

    def visible(self, rows: Rows) -> Tensor:
        return rows.valid & self._band.pairs(rows.query_positions, rows.key_positions)

    def blocks(self, rows: Rows) -> BlockGraph | None:
        return BlockGraph.of_band(rows, self._band)

    @property
    def _band(self) -> Band:
        return Band(None, self.stride, self._local)

    @property
    def _local(self) -> int:
        return self.stride if self.local is None else self.local
