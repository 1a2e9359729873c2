"""Training the projections of one layer on what it sees, and clustering what they make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from crisp_attention.extras import needs
from crisp_attention.methods.blocks import Blocks
from crisp_attention.methods.layouts.sparsefinder.clusters import centers, check_enough
from crisp_attention.methods.layouts.sparsefinder.groups import project
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.part import Gold, Shape
from crisp_attention.methods.ranking import keep_largest
from crisp_attention.methods.rows import Rows, repeat_heads

if TYPE_CHECKING:
    from crisp_attention.methods.layouts.sparsefinder.layout import Sparsefinder

MARGIN = 1.0
LEARNING_RATE = 1e-2
CLIP = 1.0
EXAMPLES = 8  # in a step
QUERIES = 64  # tokens of an example whose rows are trained on, a quarter of them in a step
HELD_OUT = 8  # each so many-th of them is for telling when to stop
STEPS, EVERY, PATIENCE = 1000, 25, 4
CHECKED = 8  # samples whose held-out queries tell when to stop
POINTS = 10_000  # of a head that are clustered


@dataclass
class Sample:
    """Queries (B, H, m, D) and keys (B, H, n, D) of some examples, and which keys each query should find.

    `positive` and `candidate` are bool (B, H, m, n), disjoint; `real` (B, m) leaves out padding, and `held_out` (B, m)
    is not trained on.
    """

    query: Tensor
    key: Tensor
    positive: Tensor
    candidate: Tensor
    real: Tensor
    held_out: Tensor

    def at(self, places: Tensor) -> Sample:
        """The same with some of the queries, by their places (n,)."""
        return Sample(
            self.query[:, :, places],
            self.key,
            self.positive[:, :, places],
            self.candidate[:, :, places],
            self.real[:, places],
            self.held_out[:, places],
        )


class Finder:
    """Finds what `Sparsefinder` holds for one layer: a `Fitter`.

    Of every example it keeps the queries and gold pairs of at most `QUERIES` rows, which is a sample of a long one. The
    loss of a query is `[1 + Σ d²(its positives) - Σ d²(as many negatives)]₊`; every step draws the negatives from
    the valid keys that are no positives (Sparsefinder, section 3.2). Adam takes steps until the loss of the queries
    that are held out stops falling, and the best projections are kept.
    """

    def __init__(self, layout: Sparsefinder, shape: Shape, gold: Gold, seed: int) -> None:
        if layout.rank > shape.width:
            raise ValueError(f"rank must be at most the width of a head, {shape.width}, got {layout.rank}")
        self.layout, self.shape, self.gold, self.seed = layout, shape, gold, seed
        if layout.variant == "kmeans":
            needs("sklearn.cluster", extra="runs")
        self.random = torch.Generator().manual_seed(seed)
        self.samples: list[Sample] = []
        self.units = 0  # queries, or blocks of them, in the samples
        self._found: dict[tuple[int, int], Tensor] = {}

    def see(self, rows: Rows) -> None:
        for first in range(0, len(rows.query), EXAMPLES):
            few = torch.arange(first, min(first + EXAMPLES, len(rows.query)), device=rows.query.device)
            self.samples.append(self._sample(rows.of_examples(few)))

    def values(self, layout: Sparsefinder | None = None) -> dict[str, Tensor]:
        """Those of the layout, or of another one that has the same projections: one with more clusters, say."""
        layout = layout or self.layout
        if layout.variant != "kmeans":
            return dict(self._weights)
        tokens = sum(int(_valid_keys(sample).sum()) for sample in self.samples)
        unit = "tokens" if layout.block_size == 1 else f"blocks of {layout.block_size} tokens"
        check_enough(min(tokens, POINTS), unit, layout.clusters)
        return self._weights | {"centers": self._centers(layout.clusters, layout.runs)}

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return self._train()

    def _sample(self, rows: Rows) -> Sample:
        size = self.layout.block_size
        rows, blocks = self.layout.in_blocks(rows)
        if blocks is None or size == 1:
            real = valid_queries(rows.valid)[:, 0].expand(len(rows.query), -1)
            chosen = self._choose(real, QUERIES)
            some = rows.at(chosen)
            gold, valid = self.gold(some), some.valid.expand(-1, *some.products.shape[1:])
            query, key, real = some.query, rows.key, real.gather(1, chosen)
        else:
            query, key = (blocks.means(states) for states in (rows.query, rows.key))
            present = blocks.present(query.device)[:, 0, 0].expand(len(rows.query), -1)
            chosen = self._choose(present, max(1, QUERIES // size))
            gold, valid = self._of_blocks(rows, blocks, chosen)
            query = query.gather(2, chosen[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
            real = present.gather(1, chosen)
        held_out = self._hold_out(real)
        key = repeat_heads(key, self.shape.heads // self.shape.groups)
        return Sample(query, key, gold & valid, valid & ~gold, real, held_out)

    def _choose(self, real: Tensor, most: int) -> Tensor:
        """The places of at most `most` units of each example (B, m), real ones first, in random order."""
        order = torch.rand(real.shape, generator=self.random).to(real.device).masked_fill(~real, 2.0)
        return order.argsort(dim=1)[:, : min(most, int(real.sum(dim=1).max()))]

    def _hold_out(self, real: Tensor) -> Tensor:
        """Every so many-th of the real units (B, m) of all samples, in random order, from the second on."""
        order = torch.rand(real.numel(), generator=self.random).masked_fill(~real.flatten().cpu(), 2.0)
        number = torch.empty(real.numel(), dtype=torch.long)
        number[order.argsort()] = self.units + torch.arange(real.numel())
        self.units += int(real.sum())
        return real & (number % HELD_OUT == 1).reshape(real.shape).to(real.device)

    def _of_blocks(self, rows: Rows, blocks: Blocks, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Which blocks of keys hold gold pairs of the chosen blocks of queries, and which hold valid ones."""
        size, length = blocks.size, blocks.length
        order = blocks.order
        if order is None:
            order = torch.arange(length, device=chosen.device).expand(len(chosen), -1)
        place = (chosen[..., None] * size + torch.arange(size, device=chosen.device)).flatten(1)
        inside = place < (length if blocks.lengths is None else blocks.lengths[:, None])
        some = rows.at(order.gather(1, place.clamp(max=length - 1)))
        found = []
        for pairs in (self.gold(some), some.valid.expand(-1, *some.products.shape[1:])):
            pairs = pairs & inside[:, None, :, None]
            pairs = pairs.gather(3, order[:, None, None].expand(-1, *pairs.shape[1:3], -1))
            pairs = torch.nn.functional.pad(pairs, (0, blocks.count * size - length))
            found.append(
                pairs.unflatten(3, (blocks.count, size)).unflatten(2, (-1, size)).any(dim=-1).any(dim=3)
            )
        return found[0], found[1]

    def _train(self) -> dict[str, Tensor]:
        layout, width = self.layout, self.shape.width
        home = self.samples[0].query.device
        bound = width**-0.5  # Kaiming's, with a = √5

        def drawn(*sizes: int) -> Tensor:
            return (bound * (2 * torch.rand(*sizes, generator=self.random) - 1)).to(home)

        names = ["query"] if layout.shared else ["query", "key"]
        weights = {name: drawn(self.shape.heads, width, layout.rank) for name in names}
        if not layout.shared:
            weights["offset"] = torch.zeros(self.shape.heads, 1, layout.rank, device=home)
        if self.units < 2:
            unit = "token" if layout.block_size == 1 else f"block of {layout.block_size} tokens"
            raise ValueError(f"fitting needs at least 2 queries, one of which is held out, got one {unit}")
        telling = [each for each in self._once() if each.held_out.any()][:CHECKED]
        held_out = [(each, self._negatives(each)) for each in map(_held_out, telling)]
        best, since, kept = float("inf"), 0, weights
        with torch.enable_grad():
            weights = {name: value.requires_grad_() for name, value in weights.items()}
            adam = torch.optim.Adam(weights.values(), lr=LEARNING_RATE)
            for step, sample in zip(range(STEPS + 1), self._in_turn(), strict=False):
                if step % EVERY == 0:
                    with torch.no_grad():
                        now = sum(float(self._loss(weights, *each)) for each in held_out)
                    if now < best * (1 - 1e-3):
                        best, since = now, 0
                        kept = {name: value.detach().clone() for name, value in weights.items()}
                    else:
                        since += 1
                    if since == PATIENCE:
                        break
                some = self._some(sample)
                adam.zero_grad()
                self._loss(weights, some, self._negatives(some)).backward()
                clip_grad_norm_(weights.values(), CLIP)
                adam.step()
        return kept

    def _once(self) -> list[Sample]:
        """All samples in random order."""
        return [self.samples[i] for i in torch.randperm(len(self.samples), generator=self.random).tolist()]

    def _in_turn(self) -> Iterator[Sample]:
        while True:
            yield from self._once()

    def _some(self, sample: Sample) -> Sample:
        """A quarter of the queries, without those that are held out."""
        count = sample.query.shape[2]
        places = torch.randperm(count, generator=self.random)[: max(1, count // 4)].to(sample.query.device)
        some = sample.at(places)
        return replace(some, real=some.real & ~some.held_out)

    def _negatives(self, sample: Sample) -> Tensor:
        """As many candidates of each query as it has positives, or all if there are fewer, bool (B, H, m, n)."""
        available = sample.candidate.sum(dim=-1, keepdim=True)
        count = torch.minimum(sample.positive.sum(dim=-1, keepdim=True), available)
        ranked = torch.rand(sample.candidate.shape, generator=self.random).to(sample.query.device)
        return sample.candidate & keep_largest(ranked, sample.candidate, count)

    def _loss(self, weights: dict[str, Tensor], sample: Sample, negative: Tensor) -> Tensor:
        query, key = _projected(weights, sample)
        distances = (
            query.square().sum(-1)[..., None] + key.square().sum(-1)[..., None, :]
        ) - 2 * query @ key.mT
        signs = sample.positive.to(distances.dtype) - negative.to(distances.dtype)
        of_queries = (MARGIN + (signs * distances).sum(dim=-1)).clamp(min=0)
        real = sample.real[:, None].to(distances.dtype)
        return (of_queries * real).sum() / (real.sum() * query.shape[1]).clamp(min=1)

    @cached_property
    def _points(self) -> Tensor:
        """Projected queries and keys, in random order, (points, H, rank)."""
        seen = []
        for sample in self.samples:
            query, key = _projected(self._weights, sample)
            seen.append((query.transpose(1, 2)[sample.real], key.transpose(1, 2)[_valid_keys(sample)]))
        points = torch.cat([part for pair in seen for part in pair]).double().cpu()
        return points[torch.randperm(len(points), generator=self.random)[:POINTS]]

    def _centers(self, clusters: int, runs: int) -> Tensor:
        """Centres of the projected queries and keys of each head, (H, runs, clusters, rank)."""
        if (clusters, runs) not in self._found:
            found = centers(self._points, clusters, runs, self.seed)
            self._found[clusters, runs] = found.to(self.samples[0].query.device)
        return self._found[clusters, runs]


def _projected(weights: dict[str, Tensor], sample: Sample) -> tuple[Tensor, Tensor]:
    return project(weights, sample.query.float(), sample.key.float())


def _held_out(sample: Sample) -> Sample:
    """Its queries that are not trained on."""
    some = sample.at(sample.held_out.any(dim=0).nonzero()[:, 0])
    return replace(some, real=some.real & some.held_out)


def _valid_keys(sample: Sample) -> Tensor:
    """The keys that some query may see, bool (B, n)."""
    return (sample.positive | sample.candidate)[:, 0].any(dim=1)
