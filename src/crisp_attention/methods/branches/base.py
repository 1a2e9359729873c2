from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from crisp_attention.methods.blocks import BlockGraph, Ranking
from crisp_attention.methods.part import Part
from crisp_attention.methods.rows import Rows


class Looking(Protocol):
    """What a branch may ask a layout: see `Layout`."""

    ranks_blocks: ClassVar[bool]

    def ranking(self, rows: Rows) -> Ranking: ...


class Attended(Protocol):
    """What a branch may look at: the call as passed to the kernel, with the blocks that the kernel used."""

    @property
    def query(self) -> Tensor:
        """(B, H, L, D)"""

    @property
    def key(self) -> Tensor:
        """(B, G, S, D)"""

    @property
    def value(self) -> Tensor:
        """(B, G, S, Dv)"""

    @property
    def rows(self) -> Rows:
        """Valid pairs, positions, scale, bias and softcap."""

    @property
    def layout(self) -> Looking:
        """That of the method"""

    @property
    def blocks(self) -> BlockGraph | None:
        """Which blocks see each other, where the layout decides on whole blocks."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What the layer holds for the method; `self.parameter(call, name)` gives the branch's own."""


@dataclass(frozen=True)
class Branch(Part):
    """A second output that is added to that of the kernel, for example for the keys that no query kept.

    It works with every kernel. Tokens that stay dense (`dense_tokens` of `crisp.sparsify`) get nothing added, and it
    sees the others as if they were alone. A method with a branch has no attention weights to return.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> import crisp_attention as crisp
    >>> @dataclass(frozen=True)
    ... class MeanValue(crisp.Branch):
    ...     def attention(self, call, output):
    ...         return call.value.mean(2, keepdim=True).expand(-1, -1, call.query.shape[2], -1)
    >>> states = torch.ones(1, 1, 4, 2)
    >>> crisp.attention(states, states, states, crisp.Method(rule=crisp.TopK(0.5), branch=MeanValue()))[0, 0, 0]
    tensor([2., 2.])
    """

    kind: ClassVar[str] = "branch"

    def check(self, layout: Looking) -> None:
        """Raise ValueError if the branch does not go with a layout."""
        return

    def adds_nothing(self) -> bool:
        """Whether it adds nothing where the layout shows everything and the rule drops nothing."""
        return False

    def pairs(self, call: Attended) -> Tensor:
        """The pairs that it attends to, bool, broadcastable to (B, H, L, S), for `crisp.measuring`; by default none."""
        return call.rows.valid.new_zeros(())

    @abstractmethod
    def attention(self, call: Attended, output: Tensor) -> Tensor:
        """What is added to the `output` (B, H, L, Dv) of layout and rule, (B, H, L, Dv), differentiable, in float32 or
        better.
        """
