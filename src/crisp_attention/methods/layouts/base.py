from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.methods.blocks import BlockGraph, Ranking
from crisp_attention.methods.part import Part
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.sight import Sight


@dataclass(frozen=True)
class Layout(Part):
    """Where a query may look: a choice of pairs made without the whole row of scores.

    A class with a `name` in its own body is known by it to specs and saved models.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> import crisp_attention as crisp
    >>> @dataclass(frozen=True)
    ... class EverySecond(crisp.Layout):
    ...     def visible(self, rows):
    ...         return rows.valid & (torch.arange(rows.key.shape[2]) % 2 == 0)
    >>> query = key = torch.ones(1, 1, 4, 2)
    >>> crisp.attention(query, key, torch.eye(4)[None, None], EverySecond())[0, 0, 0]
    tensor([0.5000, 0.0000, 0.5000, 0.0000])
    """

    kind: ClassVar[str] = "layout"
    ranks_blocks: ClassVar[bool] = False

    @property
    def learned(self) -> "Layout | None":
        """The same without the fixed patterns that it adds to what was fitted; None where it adds none."""
        return None

    @property
    def shared_fit(self) -> "Layout":
        """The layout whose fitter also finds what this one holds, as its `values(layout)`; by default itself."""
        return self

    def shows_everything(self, keys: int | None = None) -> bool:
        """Whether a query sees all its valid keys, if they are at most `keys`, or however many they are."""
        return False

    @abstractmethod
    def visible(self, rows: Rows) -> Tensor:
        """Visible pairs, a subset of `rows.valid`; bool with full L and S, broadcastable to (B, H, L, S)."""

    def blocks(self, rows: Rows) -> BlockGraph | None:
        """The same choice, valid pairs aside, as whole blocks; None where the pairs are not blocks.

        Called once per call, and used by every kernel in place of `visible`. It must not look at the values of masks.
        """
        return None

    def sight(self, rows: Rows) -> Sight | None:
        """The same choice, valid pairs aside, as numbers of tokens, where every pair without a mask is valid.

        For kernels, which hold no pair then. None where the pairs are not of that kind.
        """
        return None

    def ranking(self, rows: Rows) -> Ranking:
        """How every query ranks the blocks of its row, for branches, if the class says that it `ranks_blocks`.

        What it ranks them by is then on its `BlockGraph` too, unless that shows everything.
        """
        raise TypeError(f"{self!r} ranks no blocks")
