from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from crisp_attention.layouts.base import Layout
from crisp_attention.pairs import key_ranks, query_ranks


@dataclass(frozen=True)
class Window(Layout):
    """A band of `width` keys centred on the query's own token, and `global_tokens` first tokens.

    Positions count valid tokens, so padding does not move the band. A global token sees every
    valid key and is seen by every query (Longformer, arXiv 2004.05150). `width` is odd: the band
    reaches width // 2 to each side.
    """

    width: int
    global_tokens: int = 0

    name: ClassVar[str] = "window"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (
            isinstance(self.width, bool)
            or not isinstance(self.width, int)
            or self.width < 1
            or self.width % 2 == 0
        ):
            raise ValueError(f"width must be an odd whole number of at least 1, got {self.width!r}")
        if (
            isinstance(self.global_tokens, bool)
            or not isinstance(self.global_tokens, int)
            or self.global_tokens < 0
        ):
            raise ValueError(
                f"global_tokens must be a whole number of at least 0, got {self.global_tokens!r}"
            )

    def visible(self, valid: Tensor) -> Tensor:
        keys, queries = key_ranks(valid), query_ranks(valid)
        near = (keys - queries).abs() <= self.width // 2
        # rank 0: the query's own token precedes every valid key, so it is no token of the sequence
        anchors = (keys <= self.global_tokens) | ((queries > 0) & (queries <= self.global_tokens))
        return valid & (near | anchors)
