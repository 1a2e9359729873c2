"""Blocks of tokens in self-attention, and which of them see each other."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crisp_attention.methods.band import Band
from crisp_attention.methods.ranking import on_host
from crisp_attention.methods.rows import Rows

# of a band's tiles
BAND_SIZE = 64


@dataclass(frozen=True)
class Blocks:
    """The tokens of a self-attention, an example's real ones first and in their order, in blocks of `size`.

    `order` (B, L) holds their indices in that order and `lengths` (B,) how many are real; both are None where
    all are. Where they lie side by side, `span` (B, 2) says from which to which.
    """

    size: int
    length: int
    order: Tensor | None = None
    lengths: Tensor | None = None
    span: Tensor | None = None

    @classmethod
    def of(cls, rows: Rows, size: int) -> "Blocks | None":
        """The blocks of some rows; None unless queries and keys are the same tokens, and all see the same of them.

        Whether they do is judged by the mask's strides: its values are not looked at.
        """
        length = rows.key.shape[2]
        if rows.causal or rows.query.shape[2] != length or length == 0:
            return None
        if rows.mask is None:
            return cls(size, length) if rows.span is None else cls._of_span(size, length, rows.span)
        mask = rows.shown
        assert mask is not None
        if not all(mask.shape[dim] == 1 or mask.stride(dim) == 0 for dim in (1, 2)):
            return None
        real = mask[:, 0, 0].expand(rows.query.shape[0], length)
        order = (~real).int().argsort(dim=-1, stable=True)
        return cls(size, length, order, real.sum(dim=-1, dtype=torch.int32))

    @classmethod
    def _of_span(cls, size: int, length: int, span: Tensor) -> "Blocks":
        first, end = span[:, :1].clamp(min=0), span[:, 1:].clamp(max=length)
        lengths = (end - first).clamp(min=0)
        place = torch.arange(length, device=span.device)
        before = torch.where(place - lengths < first, place - lengths, place)
        order = torch.where(place < lengths, first + place, before)
        return cls(size, length, order, lengths.squeeze(1).int(), torch.cat([first, end], dim=1))

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.length // self.size)

    def present(self, device: torch.device) -> Tensor:
        """The blocks with a real token, bool (B or 1, 1, 1, n)."""
        first = torch.arange(self.count, device=device)[None, None, None] * self.size
        return first < (self.length if self.lengths is None else self.lengths[:, None, None, None])

    def in_order(self, states: Tensor) -> Tensor:
        """States (B, H, L, D), real tokens first."""
        if self.order is None:
            return states
        return states.gather(2, self.order[:, None, :, None].expand(states.shape))

    def divided(self, states: Tensor, fill: float | None = None) -> Tensor:
        """States (B, H, L, D) as blocks (B, H, n, size, D), in order, zeros after the last.

        With `fill`, that stands where a token is not real.
        """
        states = self.in_order(states)
        if fill is not None and self.lengths is not None:
            place = torch.arange(self.length, device=states.device)[:, None]
            states = torch.where(place < self.lengths[:, None, None, None], states, fill)
        if missing := self.count * self.size - self.length:
            states = torch.nn.functional.pad(states, (0, 0, 0, missing))
        return states.unflatten(2, (self.count, self.size))

    def joined(self, states: Tensor) -> Tensor:
        """Blocks (B, H, n, size, D) as states (B, H, L, D) in their original order."""
        return self.back(states.flatten(2, 3)[:, :, : self.length])

    def back(self, states: Tensor) -> Tensor:
        """Ordered states, back in their original order."""
        if self.order is None:
            return states
        return states.gather(2, self.order.argsort(dim=-1)[:, None, :, None].expand(states.shape))

    def means(self, states: Tensor) -> Tensor:
        """Mean of each block's real tokens (B, H, n, D), in float32 or better, of states (B, H, L, D)."""
        if self.span is not None and on_host(states):
            return self._means_of_spans(states, self.span)
        states = self.in_order(states)
        exact = torch.promote_types(states.dtype, torch.float32)
        lengths = None if self.lengths is None else self.lengths[:, None, None, None]
        if lengths is not None:
            place = torch.arange(self.length, device=states.device)[:, None]
            states = torch.where(place < lengths, states, 0.0)
        first = torch.arange(self.count, device=states.device)[:, None] * self.size
        counts = ((self.length if lengths is None else lengths) - first).clamp(1, self.size)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # one program for all lengths
            filled = torch.nn.functional.pad(states, (0, 0, 0, self.count * self.size - self.length))
            return filled.unflatten(2, (-1, self.size)).sum(dim=3, dtype=exact) / counts
        whole = self.length // self.size
        sums = states[:, :, : whole * self.size].unflatten(2, (whole, self.size)).sum(dim=3, dtype=exact)
        if self.length % self.size:
            rest = states[:, :, whole * self.size :].sum(dim=2, keepdim=True, dtype=exact)
            sums = torch.cat([sums, rest], dim=2)
        return sums / counts

    def _means_of_spans(self, states: Tensor, span: Tensor) -> Tensor:
        # padding is not even read
        first, end = span[:, :1], span[:, 1:]
        place = torch.arange(self.length)
        example, token = ((place >= first) & (place < end)).nonzero(as_tuple=True)
        block = example * self.count + (token - first[example, 0]) // self.size
        exact = torch.promote_types(states.dtype, torch.float32)
        real = states[example, :, token].to(exact)
        sums = real.new_zeros(len(states) * self.count, *real.shape[1:]).index_add_(0, block, real)
        counts = (end - first - torch.arange(self.count) * self.size).clamp(1, self.size)
        return (sums.unflatten(0, (-1, self.count)) / counts[:, :, None, None]).transpose(1, 2)


def with_strides(rows: Rows) -> Rows:
    """The same rows, with strides of the mask that say that all queries see the same keys, if its values do.

    Queries that see nothing, as padding may, then see them too. Under a compiler values are not known, and the rows
    stay as they are.
    """
    mask = rows.mask
    self_attention = rows.query.shape[2] == rows.key.shape[2]
    if mask is None or rows.causal or not self_attention or torch.compiler.is_compiling():
        return rows
    keys = mask[:, :1].any(dim=2, keepdim=True)
    alike = ((mask == keys) | ~mask.any(dim=-1, keepdim=True)).all()
    return replace(rows, mask=keys.expand_as(mask), _valid=None) if bool(alike) else rows


@dataclass(frozen=True)
class Choice:
    """How every query chooses blocks for itself among those of its row, the last of which is its own.

    By the product with their mean keys; the first `sink_blocks` and the last `local_blocks` are always among them.
    """

    sparsity: float
    sink_blocks: int
    local_blocks: int


@dataclass(frozen=True)
class BlockGraph:
    """Which valid pairs see each other: those of blocks that do, and those of a band.

    `seen` is bool (B, H, n, n): which blocks of keys each block of queries sees; None where only a band says, or where
    every query makes a `choice` for itself, for kernels to compute. Blocks
    without a real token see nothing and are seen by none. `ranked` (B, H, n, n) is what a layout chose them by,
    the larger the better, if it ranks them.
    """

    blocks: Blocks
    seen: Tensor | None
    ranked: Tensor | None = None
    band: Band | None = None
    choice: Choice | None = None

    @classmethod
    def of(cls, rows: Rows, blocks: Blocks, seen: Tensor, ranked: Tensor | None = None) -> "BlockGraph":
        """The graph of what is `seen`, broadcastable to (B, H, n, n), among the blocks that have a real token."""
        present = blocks.present(seen.device)
        seen = seen & present & present.transpose(-1, -2)
        return cls(blocks, seen.expand(*rows.query.shape[:2], -1, -1), ranked)

    @classmethod
    def of_band(cls, rows: Rows, band: Band) -> "BlockGraph | None":
        """The graph of a band; None where pairs are masked one by one, and in cross-attention."""
        queries, keys = rows.query.shape[2], rows.key.shape[2]
        if rows.mask is not None or queries > keys:
            return None
        return cls(Blocks(BAND_SIZE, keys), None, band=band)

    @property
    def is_whole(self) -> bool:
        """Whether blocks see each other whole or not at all."""
        return self.band is None and self.choice is None

    def pairs(self, rows: Rows) -> Tensor:
        """The pairs of tokens that see each other as far as they are valid, bool (B, H, L, S); not of a choice."""
        found = None if self.band is None else self.band.pairs(rows.query_positions, rows.key_positions)
        if self.seen is not None:
            inside = self._inside(self.seen)
            found = inside if found is None else found | inside
        assert found is not None
        return found

    def _inside(self, seen: Tensor) -> Tensor:
        block = torch.arange(self.blocks.length, device=seen.device) // self.blocks.size
        if self.blocks.order is None:
            return seen[:, :, block][..., block]
        own = block[self.blocks.order.argsort(dim=-1)][:, None]
        (batch, heads, count, _), length = seen.shape, self.blocks.length
        rows = seen.gather(2, own[..., None].expand(batch, heads, length, count))
        return rows.gather(3, own[..., None, :].expand(batch, heads, length, length))

    def listed(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """How many blocks each block of queries sees (B, H, n), and which, ascending and first, (B, H, n, n); int32."""
        return (None, None) if self.seen is None else listed(self.seen)


@dataclass(frozen=True)
class Ranking:
    """What every query ranks the blocks of its own row by, (B, H, L, n), where queries choose one by one.

    Which blocks its row has and which are kept are bool and broadcast to that; `block` (..., L, S) says which block of
    the row each key is in, and has no meaning where the key is not valid.
    """

    ranked: Tensor
    present: Tensor
    kept: Tensor
    block: Tensor

    def pairs(self, chosen: Tensor) -> Tensor:
        """Whether each key is in one of the `chosen` blocks (B, H, L, n) of the query's row, bool (B, H, L, S)."""
        return chosen.gather(-1, self.block.expand(*chosen.shape[:-1], -1))


def listed(kept: Tensor) -> tuple[Tensor, Tensor]:
    """How many entries of each row are True, and which, ascending and first, then the others; int32."""
    order = (~kept).int().argsort(dim=-1, stable=True)
    return kept.sum(dim=-1, dtype=torch.int32), order.to(torch.int32)
