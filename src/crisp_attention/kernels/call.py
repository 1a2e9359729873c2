"""One attention call, as every kernel is given it."""

from dataclasses import dataclass, field

from torch import Tensor

from crisp_attention.heads import LayerMethod
from crisp_attention.pairs import causal_mask
from crisp_attention.rules.base import Learned


@dataclass(frozen=True)
class Call:
    """Queries (B, H, L, D) over keys (B, G, S, D) and values (B, G, S, Dv); the rest as in `reference.attention`.

    `valid` is bool and broadcasts to (B, H, L, S); `causal` forbids besides, without a mask that
    somebody has to hold, the keys j > i.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    method: LayerMethod
    scale: float
    valid: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    seed: Tensor | None = None
    learned: Learned = field(default_factory=dict)
    block_means: Tensor | None = None

    @property
    def pairs(self) -> Tensor | None:
        """`valid` and `causal` as one mask, None where every pair is valid."""
        if not self.causal:
            return self.valid
        causal = causal_mask(self.query.shape[2], self.key.shape[2], self.query.device)
        return causal if self.valid is None else self.valid & causal
