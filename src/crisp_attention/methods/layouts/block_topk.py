from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.blocks import BlockGraph, Blocks, Choice, Ranking
from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.pairs import key_ranks, valid_queries
from crisp_attention.methods.ranking import grouped, keep_largest, share_count, share_is_whole
from crisp_attention.methods.rows import Rows


@dataclass(frozen=True)
class BlockTopK(Layout):
    """The key blocks whose mean key has the largest product with the mean query (SLA, arXiv 2509.24006, 3.2).

    Blocks are runs of `block_size` valid keys of the row, so padding moves none of them and is in no
    mean. Of a row's n blocks, max(1, ceil((1 - sparsity) * n)) are kept; among them always the
    first `sink_blocks` and the `local_blocks` nearest on each side, the query's own included.
    Queries that see the same keys, one after another, are averaged in blocks of `block_size`. Under a
    causal mask no two do: each query is ranked by itself, so that no choice depends on later tokens,
    with or without a cache.
    Pairs inside the kept blocks are visible as far as they are valid. Where a query or a key is not
    finite, those that rank it see all their blocks.

    Parameters
    ----------
    sparsity
        The share of a row's blocks that is dropped, in [0, 1).
    block_size
        Keys in a block.
    sink_blocks
        How many blocks at the beginning of a row are always kept.
    local_blocks
        How many of the nearest blocks on each side are always kept, the query's own included. 0 keeps none of them,
        but for the own one where no query sees later keys, as in decoders.

    Examples
    --------
    >>> import torch
    >>> import crisp_attention as crisp
    >>> query = key = torch.randn(1, 1, 8, 4)
    >>> weights = crisp.attention(query, key, torch.eye(8)[None, None], crisp.BlockTopK(0.5, block_size=2))
    >>> (weights > 0).sum(-1)  # two of four blocks of two keys
    tensor([[[4, 4, 4, 4, 4, 4, 4, 4]]])
    """

    sparsity: float = 0.8
    block_size: int = 64
    sink_blocks: int = 0
    local_blocks: int = 1

    name: ClassVar[str] = "block_topk"
    uses_positions: ClassVar[bool] = True
    ranks_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("sparsity", self.sparsity, "[0, 1)")
        check_whole("block_size", self.block_size, 1)
        check_whole("sink_blocks", self.sink_blocks, 0)
        check_whole("local_blocks", self.local_blocks, 0)

    def shows_everything(self, keys: int | None = None) -> bool:
        if self.sparsity == 0 or keys is None:
            return self.sparsity == 0
        blocks = -(-keys // self.block_size)
        return share_is_whole(blocks, self.sparsity) or max(self.sink_blocks, self.local_blocks) >= blocks

    def blocks(self, rows: Rows) -> BlockGraph | None:
        # L · D and (L / block_size)² · D, where the pairs below take L² · D
        blocks = Blocks.of(rows, self.block_size)
        if blocks is None:
            return self._singly(rows)
        present = blocks.present(rows.query.device).expand(rows.query.shape[0], -1, -1, -1)
        if self.sparsity == 0:
            return BlockGraph.of(rows, blocks, present)
        query, key = (blocks.means(states) for states in (rows.query, rows.key))
        grouped = query.unflatten(1, (key.shape[1], -1))
        products = (grouped @ key[:, :, None].transpose(-1, -2)).flatten(1, 2) * rows.scale
        own = torch.arange(blocks.count, device=query.device)[:, None]
        ranked, forced = self._ranked(products, present, self._forced(present, own))
        return BlockGraph.of(rows, blocks, self._kept(ranked, forced, present), ranked)

    def _singly(self, rows: Rows) -> BlockGraph | None:
        """The graph in which each query chooses for itself; None where some see the same keys, or a mask says which."""
        queries, keys = rows.query.shape[2], rows.key.shape[2]
        # where keys end before the last, several of the last queries may see the same
        several = rows.first_query + queries > keys or (rows.span is not None and queries < keys)
        if rows.mask is not None or queries > keys or (queries > 1 and (several or not rows.causal)):
            return None
        choice = Choice(self.sparsity, self.sink_blocks, self.local_blocks)
        return BlockGraph(Blocks(self.block_size, keys), None, choice=choice)

    def visible(self, rows: Rows) -> Tensor:
        if self.sparsity == 0:
            return rows.valid
        ranking = self.ranking(rows)
        return rows.valid & ranking.pairs(ranking.kept)

    def ranking(self, rows: Rows) -> Ranking:
        ranked, present, forced = self.rank(rows)
        return Ranking(ranked, present, self._kept(ranked, forced, present), self.block_of(rows.valid))

    def block_of(self, valid: Tensor) -> Tensor:
        """The block of every key in its row, from 0, (..., L, S); of no meaning where not valid."""
        return (key_ranks(valid) - 1).clamp(min=0) // self.block_size

    def rank(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """What every query ranks blocks by (B, H, L, n), which blocks its row has, and which it always keeps.

        The last two are bool and broadcast to the first, whose entries are infinite where always kept.
        """
        size, valid = self.block_size, rows.valid
        keys = valid.sum(dim=-1, keepdim=True)
        sums = grouped(rows.products, rows.key_positions, valid, size, 0.0).sum(dim=-1)
        block = torch.arange(sums.shape[-1], device=valid.device)
        products = sums / (keys - block * size).clamp(1, size)
        present, own = block * size < keys, (rows.query_positions - 1) // size
        forced = self._forced(present, own)
        if self.local_blocks == 0:
            later = (valid & (rows.key_positions > rows.query_positions)).flatten(-2).any(dim=-1)
            forced = forced | (present & (block == own) & ~later[..., None, None])
        if valid.shape[-2]:
            products = self._mean_query(products, valid)
        ranked, forced = self._ranked(products, present, forced)
        return ranked, present, forced

    def _forced(self, present: Tensor, own: Tensor) -> Tensor:
        """The blocks that are always kept, given each row's own block."""
        block = torch.arange(present.shape[-1], device=present.device)
        return present & ((block < self.sink_blocks) | ((block - own).abs() < self.local_blocks))

    def _ranked(self, products: Tensor, present: Tensor, forced: Tensor) -> tuple[Tensor, Tensor]:
        """What blocks are ranked by, given the products, and those that are always kept."""
        # a row with a number that is not finite keeps all its blocks, as NaN does
        ranked = products.masked_fill(~products.isfinite().all(dim=-1, keepdim=True), torch.nan)
        return torch.where(forced, torch.inf, ranked), forced

    def _kept(self, ranked: Tensor, forced: Tensor, present: Tensor) -> Tensor:
        blocks = present.sum(dim=-1, keepdim=True)
        count = torch.maximum(share_count(blocks, self.sparsity), forced.sum(dim=-1, keepdim=True))
        return keep_largest(ranked, present.expand_as(ranked), count)

    def _mean_query(self, block_products: Tensor, valid: Tensor) -> Tensor:
        # products are linear in the query: their mean is the product with the mean query
        real = valid_queries(valid)
        previous = (torch.arange(valid.shape[-2], device=valid.device) - 1).clamp(min=0)
        sees = (valid != valid.index_select(-2, previous)).any(dim=-1).cumsum(dim=-1)
        # queries that see the same keys, one after another, are divided into blocks from their first
        earlier = (sees[..., None, :] < sees[..., :, None]) & real[..., None, :]
        block = (real.cumsum(dim=-1) - earlier.sum(dim=-1) - 1) // self.block_size

        def equal(values: Tensor) -> Tensor:
            return values[..., :, None] == values[..., None, :]

        alike = equal(block) & equal(sees) & real[..., None, :]
        share = (alike / alike.sum(dim=-1, keepdim=True).clamp(min=1)).to(block_products.dtype)
        # 0 times NaN is NaN: what is broken travels as a flag, so that it reaches its own group and no other
        broken = (~block_products.isfinite()).any(dim=-1, keepdim=True).to(block_products.dtype)
        pooled = share @ torch.cat([block_products.nan_to_num(), broken], dim=-1)
        # that of its first query for the whole group, however products of matrices are rounded
        first = alike.int().argmax(dim=-1, keepdim=True).expand(*pooled.shape[:-1], 1)
        pooled = pooled.gather(-2, first.expand_as(pooled))
        pooled = pooled[..., :-1].masked_fill(pooled[..., -1:] > 0, torch.nan)
        return torch.where(real.unsqueeze(-1), pooled, block_products)
