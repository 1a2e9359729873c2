"""Attention as models call it: with causality, masks, caches and grouped heads, and on rows that are not normal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.bench.contender import CRISP, DENSE, Attend, calling, learned
from crisp_attention.bench.row_kinds import LEVELS, NORMAL, TRAINED, Kind, drawn, trained
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import Method

# a triangle is a causal mask that dense attention is told of by a flag, as transformers does
Mask = Literal["none", "causal", "triangle", "triangle and padding", "padding"]
FILLED = 0.29  # the share of a padded batch that is not padding
MULTIPLE = 16  # of which kernels like widths to be
SMALL = 512  # tokens, at most, of the case that is compared with the reference


@dataclass(frozen=True)
class Situation:
    """One row of a table at one size: `mask` as `masked` says, `keys` None for as many as queries.

    yardstick: what ours is a ratio to: dense attention, ours where heads are as wide as the next multiple of 16, or
    ours on normal rows. gradients: whether forward + backward is timed too.
    """

    part: str
    row: str
    size: str
    method: Method
    queries: int
    keys: int | None = None
    batch: int = 1
    heads: int = 12
    groups: int = 12
    width: int = 64
    mask: Mask = "none"
    rows: Kind = NORMAL
    yardstick: Literal["dense", "wider", "normal"] = "dense"
    gradients: bool = True

    @property
    def small(self) -> "Situation":
        """The same with few heads and tokens."""
        shared = self.heads // self.groups
        return replace(
            self,
            batch=min(self.batch, 4),
            heads=2 * shared,
            groups=2,
            queries=min(self.queries, SMALL),
            keys=None if self.keys is None else min(self.keys, SMALL),
        )

    def contenders(self) -> "dict[str, Ready]":
        """All that are timed by name, the yardstick first."""
        if self.yardstick == "wider":
            width = -(-self.width // MULTIPLE) * MULTIPLE
            first = {f"{CRISP}, width {width}": replace(self, width=width).ours()}
        elif self.yardstick == "normal":
            first = {f"{CRISP}, {NORMAL} rows": replace(self, rows=NORMAL).ours()}
        else:
            first = {}
        return first | {DENSE: self.dense(), CRISP: self.ours()}

    def states(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, H, L, D), and key and value (B, G, S, D), the same every time."""
        keys = self.keys or self.queries
        if self.rows == TRAINED:
            return trained(self.queries, self.heads)
        generator = torch.Generator().manual_seed(0)
        queries = self.rows if self.rows == LEVELS else NORMAL  # levels of both, so that scores have them too
        return (
            drawn(queries, (self.batch, self.heads, self.queries, self.width), generator),
            drawn(self.rows, (self.batch, self.groups, keys, self.width), generator),
            drawn(NORMAL, (self.batch, self.groups, keys, self.width), generator),
        )

    def valid(self) -> Tensor | None:
        """The mask as transformers sends it, bool (B, 1, L, S); None where there is none, or a flag in its place."""
        keys = self.keys or self.queries
        place = torch.arange(keys)
        if self.mask == "padding":  # a skewed distribution of lengths, with this mean and one that is full
            share = torch.linspace(0, 1, self.batch) ** (1 / FILLED - 1)
            real = place < (share * keys).ceil().clamp(min=1)[:, None]
            return real[:, None, None, :].expand(-1, -1, self.queries, -1)
        behind = (place <= torch.arange(self.queries)[:, None] + keys - self.queries)[None, None]
        if self.mask == "triangle":
            return behind
        if self.mask == "triangle and padding":  # the last sequence has an eighth of padding on the left
            real = place >= torch.tensor([0] * (self.batch - 1) + [keys // 8])[:, None]
            return behind & real[:, None, None, :]
        return None

    def real(self, valid: Tensor | None) -> Tensor:
        """1 for queries that are tokens and 0 for padding, (B, 1, L, 1): the gradient of the output."""
        if valid is None:
            return torch.ones(self.batch, 1, self.queries, 1)
        return valid[:, :, -1, :, None].float()[:, :, -self.queries :]

    def dense(self) -> "Ready":
        """torch's scaled_dot_product_attention."""
        valid, causal = self.valid(), self.mask in ("causal", "triangle")
        attend = partial(
            scaled_dot_product_attention,
            attn_mask=None if causal else valid,
            is_causal=causal,
            enable_gqa=self.heads > self.groups,
        )
        return Ready(attend, self.states(), self.real(valid), {})

    def ours(self, backend: str = dispatch.AUTO) -> "Ready":
        """`crisp.attention`, with the kernel that it chooses or with another one."""
        valid, states = self.valid(), self.states()
        parameters = learned(self.method, states[0], states[1])

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            call = Call(
                query,
                key,
                value,
                self.method,
                scale=query.shape[-1] ** -0.5,
                valid=valid,
                causal=self.mask == "causal",
                parameters=parameters,
            )
            return dispatch.attention(call.seeded(), backend)[0]

        return Ready(attend, states, self.real(valid), parameters)


@dataclass(frozen=True)
class Ready:
    """A way to compute attention with its inputs; `real` is the gradient of the output."""

    attend: Attend
    states: tuple[Tensor, Tensor, Tensor]
    real: Tensor
    parameters: dict[str, Tensor]

    def call(self, backward: bool) -> Callable[[], tuple[Tensor, ...]]:
        """What is timed: the forward pass, or with it the gradients of inputs and of what is learned."""
        along = self.real.expand(*self.states[0].shape[:3], self.states[2].shape[-1]).contiguous()
        return calling(self.attend, self.states, backward, along, tuple(self.parameters.values()))

    def compared(self, backward: bool) -> tuple[Tensor, ...]:
        """What has to agree: the output of tokens, or gradients."""
        torch.manual_seed(0)  # for what is drawn at random
        found = self.call(backward)()
        return found if backward else tuple(each * self.real for each in found)
