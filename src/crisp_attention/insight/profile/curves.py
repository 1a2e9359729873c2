"""What one layer keeps at every sparsity, streamed: sums over rows per head and grid point."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crisp_attention.insight.profile.targets import Targets
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.pairs import key_ranks, query_ranks
from crisp_attention.methods.ranking import share_count, sort_rows, widest
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import TopK
from crisp_attention.methods.rules.base import masked_softmax


@dataclass
class Curve:
    """Kept pairs and kept dense mass of every head at each target sparsity, (H, G), summed over rows."""

    pairs: np.ndarray
    mass: np.ndarray

    @property
    def sparsity(self) -> np.ndarray:
        """Achieved sparsity, (H, G); the first target is 0."""
        return 1 - self.pairs / self.pairs[:, :1]

    @property
    def share(self) -> np.ndarray:
        """Kept share of the mass, (H, G)."""
        return self.mass / self.mass[:, :1]


@dataclass
class LayerSums:
    """Sums over the observed rows of one layer, (H,): rows, entropy (nats), distance (tokens); and curves.

    The curves go by the name of their method. In cross-attention there is none for blocks, and the
    distance is NaN: a query has no place among the keys.
    """

    rows: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    curves: dict[str, Curve]

    @classmethod
    def of(cls, seen: Observation, targets: Targets, *, cross: bool) -> "LayerSums":
        """Sums of one dense call. Rows of padded queries, and empty rows, do not count."""
        valid = _undo_expand(seen.valid)
        real = (seen.queries & valid.any(dim=-1)).unsqueeze(-1)
        weights = masked_softmax(seen.scores, seen.valid & real)
        keys = valid.sum(dim=-1, keepdim=True) * real
        shape = weights.shape[:-1]
        sums = cls(
            rows=_per_head(real.expand(*shape, 1)),
            entropy=_per_head(torch.special.entr(weights)),
            distance=np.full(shape[1], np.nan),
            curves={TopK.name: _topk(weights, keys, targets.sparsities)},
        )
        if not cross:
            sums.distance = _per_head(weights * (key_ranks(valid) - query_ranks(valid)).abs())
            sums.curves[BlockTopK.name] = _blocks(weights, keys, valid, seen.products, targets)
        return sums

    def add(self, other: "LayerSums") -> None:
        """Add the sums of another call on the same layer."""
        self.rows += other.rows
        self.entropy += other.entropy
        self.distance += other.distance
        for name, curve in self.curves.items():
            curve.pairs += other.curves[name].pairs
            curve.mass += other.curves[name].mass


def _topk(weights: Tensor, keys: Tensor, sparsities: Sequence[float]) -> Curve:
    count = torch.cat([share_count(keys, each) for each in sparsities], dim=-1)
    pairs = count.expand(*weights.shape[:-1], -1)
    return Curve(_over_rows(pairs), _first(sort_rows(weights).flip(-1), count))


def _blocks(weights: Tensor, keys: Tensor, valid: Tensor, products: Tensor, targets: Targets) -> Curve:
    layout = BlockTopK(block_size=targets.block_size)
    ranked, present, forced = layout.rank(Rows.of_scores(products, valid))
    # stable: among equals the lower block first, as BlockTopK has it
    order = torch.where(present, ranked, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    blocks, least = present.sum(dim=-1, keepdim=True), forced.sum(dim=-1, keepdim=True)
    count = torch.cat(
        [torch.maximum(share_count(blocks, each), least) for each in targets.sparsities], dim=-1
    )
    mass = torch.zeros_like(ranked, dtype=widest(weights))
    mass = mass.scatter_add(-1, layout.block_of(valid).expand_as(weights), weights.to(mass.dtype))
    first = torch.arange(ranked.shape[-1], device=ranked.device) * layout.block_size
    pairs = (keys - first).clamp(0, layout.block_size).expand_as(order)
    return Curve(_first(pairs.gather(-1, order), count), _first(mass.gather(-1, order), count))


def _first(ordered: Tensor, count: Tensor) -> np.ndarray:
    """Sums per head of the first `count` (…, L, G) entries of each row, (H, G)."""
    running = ordered.cumsum(dim=-1, dtype=widest(ordered))
    place = (count - 1).clamp(min=0).expand(*ordered.shape[:-1], -1)
    return _over_rows(running.gather(-1, place))


def _per_head(values: Tensor) -> np.ndarray:
    return _over_rows(values.sum(dim=-1, dtype=widest(values)))


def _over_rows(values: Tensor) -> np.ndarray:
    return values.sum(dim=(0, 2), dtype=widest(values)).cpu().double().numpy()


def _undo_expand(mask: Tensor) -> Tensor:
    # what is alike for all heads or examples is worked out once
    for dim in (0, 1):
        if mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    return mask
