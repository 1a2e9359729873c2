"""The rows of scores that a layout and a rule decide on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from crisp_attention.methods.hashing import MASK32, head_seeds
from crisp_attention.methods.pairs import causal_mask, key_ranks, query_ranks, span_mask


@dataclass(eq=False)
class Rows:
    """Queries (B, H, L, D) and keys (B, G, S, D), and all that a decision on their scores may look at.

    Expensive values are computed when first used.

    Parameters
    ----------
    query, key
        Of any floating dtype; H is a multiple of G.
    scale
        Factor of the products.
    mask
        Valid pairs, bool, broadcastable to (B, H, L, S); None where all are.
    causal
        Whether the keys j > i + `first_query` are forbidden as well.
    softcap, bias
        Applied to the products: capped to ±softcap by tanh, and added, broadcastable to (B, H, L, S).
    seed
        A number for every row, int64 (B or 1, H, L or 1, 1), for methods that draw.
    parameters
        Those that the layer holds for the method, by names such as `rule.alpha`.
    heads
        The numbers of the query heads in their layer; None where they are all of it.
    first_query
        The position of the first query among the keys, for `causal`.
    span
        Of each example the first valid key and the one after the last, int (B, 2); None where the mask alone says.
    """

    query: Tensor
    key: Tensor
    scale: float = 1.0
    mask: Tensor | None = None
    causal: bool = False
    softcap: float | None = None
    bias: Tensor | None = None
    seed: Tensor | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    heads: tuple[int, ...] | None = None
    first_query: int = 0
    span: Tensor | None = None
    _products: Tensor | None = field(default=None, repr=False)
    _scores: Tensor | None = field(default=None, repr=False)
    _valid: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of_scores(cls, scores: Tensor, valid: Tensor | None = None, **more: Any) -> "Rows":
        """Rows of which only the scores (..., L, S) are known, and perhaps valid pairs, a seed and parameters."""
        query, key = (scores.new_empty(*scores.shape[:-2], length, 0) for length in scores.shape[-2:])
        return cls(query, key, mask=valid, _products=scores, _scores=scores, **more)

    @property
    def exact(self) -> torch.dtype:
        """The dtype of products and scores: float32, or better where the queries are."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def products(self) -> Tensor:
        """query · key * scale, (B, H, L, S), before softcap and bias."""
        if self._products is None:
            key = repeat_heads(self.key, self.query.shape[1] // self.key.shape[1]).to(self.exact)
            self._products = torch.matmul(self.query.to(self.exact), key.transpose(2, 3)) * self.scale
        return self._products

    @property
    def scores(self) -> Tensor:
        """What the softmax is taken of, (B, H, L, S)."""
        if self._scores is None:
            scores = self.products
            if self.softcap is not None:
                scores = torch.tanh(scores / self.softcap) * self.softcap
            if self.bias is not None:
                scores = scores + self.bias.to(self.exact)
            self._scores = scores
        return self._scores

    @property
    def shown(self) -> Tensor | None:
        """The mask and the span in one, without causality; None where neither forbids a pair.

        What is the same for all heads, or all queries, has a size or a stride of 0 or 1 there.
        """
        if self.span is None:
            return self.mask
        inside = span_mask(self.span, self.key.shape[-2])
        return inside if self.mask is None else once(self.mask) & inside

    @property
    def valid(self) -> Tensor:
        """Valid pairs, bool, with full L and S, broadcastable to (B, H, L, S)."""
        if self._valid is None:
            queries, keys = self.query.shape[-2], self.key.shape[-2]
            valid = self.shown
            if self.causal:
                causal = causal_mask(queries, keys, self.query.device, self.first_query)
                valid = causal if valid is None else valid & causal
            if valid is None:
                valid = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=self.query.device)
            self._valid = valid.expand(*valid.shape[:-2], queries, keys)
        return self._valid

    @property
    def key_positions(self) -> Tensor:
        """1-based position of each key among the valid keys of its row, (..., L, S)."""
        return key_ranks(self.valid)

    @property
    def query_positions(self) -> Tensor:
        """1-based position of each query's own token among the valid keys of its row, (..., L, 1)."""
        return query_ranks(self.valid)

    def head_seeds(self, seed: int) -> Tensor:
        """A seed for every head, (1, H, 1, 1), that depends on its number in the layer and on one `seed` for all."""
        one = torch.full((), seed & MASK32, dtype=torch.int64, device=self.query.device)
        return head_seeds(one, self.query.shape[1], self.heads)

    def of(self, heads: list[int], parameters: Mapping[str, Tensor]) -> "Rows":
        """The rows of these heads, with the parameters of their method; scores are shared, not computed again."""
        shared = self.query.shape[1] // self.key.shape[1]
        return replace(
            self,
            query=self.query[:, heads],
            key=self.key[:, [head // shared for head in heads]],
            mask=of_heads(self.mask, heads),
            bias=of_heads(self.bias, heads),
            seed=None if self.seed is None else self.seed[:, heads],
            parameters=parameters,
            heads=numbers_of(heads, self.heads),
            _products=self.products[:, heads],
            _scores=self.scores[:, heads],
            _valid=of_heads(self.valid, heads),
        )

    def of_examples(self, index: Tensor) -> "Rows":
        """The rows of some examples of the batch, by their numbers (n,)."""

        def some(each: Tensor | None) -> Tensor | None:
            if each is None or each.shape[0] == 1:
                return each
            # what is expanded stays so: strides tell blocks that all queries see the same keys
            stored = once(each)
            return (stored[index] if len(stored) > 1 else stored).expand(len(index), *each.shape[1:])

        return replace(
            self,
            query=self.query[index],
            key=self.key[index],
            mask=some(self.mask),
            bias=some(self.bias),
            seed=some(self.seed),
            span=None if self.span is None else self.span[index],
            _products=None,
            _scores=None,
            _valid=None,
        )

    def of_tokens(self, some: slice) -> "Rows":
        """The rows of some tokens of a self-attention, with none but their own keys."""

        def part(each: Tensor | None) -> Tensor | None:
            if each is None:
                return None
            each = each if each.shape[-2] == 1 else each[..., some, :]
            return each if each.shape[-1] == 1 else each[..., some]

        first, end, _ = some.indices(self.key.shape[2])
        return replace(
            self,
            span=None if self.span is None else (self.span - first).clamp(0, end - first),
            query=self.query[:, :, some],
            key=self.key[:, :, some],
            mask=part(self.mask),
            bias=part(self.bias),
            seed=part(self.seed),
            _products=part(self._products),
            _scores=part(self._scores),
            _valid=None,
        )

    def at(self, queries: Tensor) -> "Rows":
        """The rows of some queries of each example, by their places (B, m); their mask holds causality and span."""

        def some(each: Tensor | None) -> Tensor | None:
            if each is None or each.shape[-2] == 1:
                return each
            place = queries[:, None, :, None]
            whole = each.expand(len(queries), *each.shape[1:])
            return whole.gather(2, place.expand(-1, each.shape[1], -1, each.shape[3]))

        query = some(self.query)
        assert query is not None
        return replace(
            self,
            query=query,
            mask=some(self.valid),
            causal=False,
            first_query=0,
            span=None,
            bias=some(self.bias),
            _products=None,
            _scores=None,
            _valid=None,
        )

    def with_scores(self, scores: Tensor) -> "Rows":
        """The same rows with other scores."""
        return replace(self, _scores=scores)


def once(mask: Tensor) -> Tensor:
    """A mask without what only repeats it: dimensions of stride 0 become 1."""
    return mask[tuple(slice(None) if step else slice(0, 1) for step in mask.stride())]


def of_heads(mask: Tensor | None, heads: list[int]) -> Tensor | None:
    """The part of a mask that is for these heads; it may be the same for all."""
    return mask if mask is None or mask.shape[-3:-2] in ((), (1,)) else mask[..., heads, :, :]


def numbers_of(heads: Sequence[int], numbers: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers in the layer of some heads, out of those with these `numbers` or, if None, of all."""
    return tuple(heads if numbers is None else [numbers[head] for head in heads])


def repeat_heads(states: Tensor, times: int) -> Tensor:
    """Key or value heads (B, G, S, D), each as often as query heads share it."""
    if times == 1:
        return states
    batch, heads, length, width = states.shape
    return (
        states[:, :, None]
        .expand(batch, heads, times, length, width)
        .reshape(batch, heads * times, length, width)
    )
