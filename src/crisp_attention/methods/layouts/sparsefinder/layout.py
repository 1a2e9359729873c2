from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.blocks import BlockGraph, Blocks, with_strides
from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.layouts.sparsefinder import groups, listing
from crisp_attention.methods.layouts.sparsefinder.fitting import Finder
from crisp_attention.methods.layouts.sparsefinder.fixed import check_fixed, fixed, fixed_pairs, fixed_sight
from crisp_attention.methods.part import Fitter, Gold, Parameter, Shape
from crisp_attention.methods.rows import Rows, repeat_heads
from crisp_attention.methods.sight import Kind, Sight, Traits

VARIANTS = ("kmeans", "distance", "quantize")
_KINDS: Mapping[str, Kind] = {"kmeans": "members", "distance": "points", "quantize": "codes"}
EVERYTHING = "inf"  # the infinite threshold, as JSON can hold it


@dataclass(frozen=True)
class Sparsefinder(Layout):
    """The pairs that a sparse rule will connect, predicted by small projections (Sparsefinder, arXiv 2109.12188).

    Every head projects its queries and keys to `rank` dimensions, where those that entmax connects in the trained
    model lie close together. `crisp.fit(model, batches)` finds the projections; the model itself does not change. A
    query sees the keys that are close to it by the variant, a window around its own token, and the global tokens.
    Where they hold the whole support of a row of entmax, it is exactly that row.

    Variants:

    - `kmeans`: query and key are in a common cluster, each in the `top` nearest of `clusters`, in one of the `runs`.
    - `distance`: their squared distance is less than `threshold`.
    - `quantize`: by at least one coordinate both have the same bucket; queries and keys are sorted, and each
      `bucket_size` of them share one. Which tokens come later matters, so decoders are refused.

    With `block_size` > 1 whole blocks of tokens are grouped, by the mean of their projections, and kernels for blocks
    compute those alone. That is for self-attention in which all queries see the same keys. Single tokens are for seeing
    what is predicted: all pairs are compared, though the CPU kernel computes the scores of those predicted only.

    Parameters
    ----------
    variant
        "kmeans", "distance" or "quantize".
    rank
        The dimensions of the projections.
    clusters, top, runs
        Of `kmeans`: the number of clusters, how many of them a token joins, and independent clusterings.
    threshold
        Of `distance`; with an infinite one every pair is visible.
    bucket_size
        Of `quantize`: tokens in a bucket.
    window
        Tokens of the band around the query's own token, an odd number, or 0 for none; with blocks, blocks. Without a
        window and global tokens a query may see no key, and its output is then 0.
    global_tokens
        How many first tokens see everything and are seen by all; the same number of last ones where all queries see the
        same keys, as in encoders. In layers with sliding windows they are those that the query's window holds. With
        blocks, blocks.
    block_size
        Tokens in a block; 1 for single tokens.
    shared
        Whether queries and keys have the same projection.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> finder = crisp.Sparsefinder(clusters=8)
    >>> crisp.Method(layout=finder, rule=crisp.Entmax(1.5)).spec
    'sparsefinder:variant=kmeans:clusters=8+entmax:alpha=1.5'
    """

    variant: str = "kmeans"
    rank: int = 4
    clusters: int = 16
    top: int = 1
    runs: int = 1
    threshold: float | str = 1.5
    bucket_size: int = 16
    window: int = 3
    global_tokens: int = 1
    block_size: int = 1
    shared: bool = True

    name: ClassVar[str] = "sparsefinder"
    uses_positions: ClassVar[bool] = True
    fitted_to_rule: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        for name in ("rank", "clusters", "top", "runs", "bucket_size", "block_size"):
            check_whole(name, getattr(self, name), 1)
        if self.top > self.clusters:
            raise ValueError(f"top must be at most clusters, {self.clusters}, got {self.top}")
        if self.threshold in (EVERYTHING, float("inf")):
            object.__setattr__(self, "threshold", EVERYTHING)
        else:
            check_number("threshold", self.threshold, "(0, inf)")
        check_fixed(self.window, self.global_tokens)
        if not isinstance(self.shared, bool):
            raise TypeError(f"shared must be True or False, got {self.shared!r}")

    @property
    def learned(self) -> "Sparsefinder":
        """The same without window and global tokens."""
        return replace(self, window=0, global_tokens=0)

    @property
    def shared_fit(self) -> "Sparsefinder":
        """The layout that stands for all whose parameters one fitter finds: those with the same projections."""
        return Sparsefinder(rank=self.rank, block_size=self.block_size, shared=self.shared)

    def shows_everything(self, keys: int | None = None) -> bool:
        return self.variant == "distance" and self.threshold == EVERYTHING

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        sizes: dict[str, tuple[int, ...]] = {"query": (shape.heads, shape.width, self.rank)}
        if not self.shared:
            sizes |= {"key": sizes["query"], "offset": (shape.heads, 1, self.rank)}
        if self.variant == "kmeans":
            sizes["centers"] = (shape.heads, self.runs, self.clusters, self.rank)
        return {name: Parameter(torch.zeros(size), trained=False) for name, size in sizes.items()}

    def fitter(self, shape: Shape, gold: Gold, seed: int = 0) -> Fitter:
        return Finder(self, shape, gold, seed)

    def visible(self, rows: Rows) -> Tensor:
        valid = rows.valid
        if self.shows_everything():
            return valid
        rows, blocks = self.in_blocks(rows)
        if blocks is not None and self.block_size > 1:
            return valid & self._graph(rows, blocks).pairs(rows)
        query, key = self.projected(rows, rows.query, rows.key)
        near = self.near(rows, query, key, rows.valid.any(dim=-2))
        return valid & (near | fixed_pairs(rows, self.window, self.global_tokens))

    def blocks(self, rows: Rows) -> BlockGraph | None:
        if self.block_size == 1 or self.shows_everything():
            return None
        blocks = Blocks.of(rows, self.block_size)
        return None if blocks is None else self._graph(rows, blocks)

    def sight(self, rows: Rows) -> Sight | None:
        rows, _ = self.in_blocks(rows)
        if self.block_size > 1 or self.shows_everything():
            return None
        query, key = self.projected(rows, rows.query, rows.key)
        kind, threshold = _KINDS[self.variant], 0.0
        if self.variant == "distance":
            threshold = float(self.threshold)
        elif self.variant == "kmeans":
            centers = self.parameter(rows, "centers")
            query, key = (groups.nearest(each, centers, self.top) for each in (query, key))
        else:
            real = _real_keys(rows)
            query, key = (groups.buckets(each, real, self.bucket_size) for each in (query, key))
        return fixed_sight(Traits(kind, query, key, threshold), self.window, self.global_tokens)

    def in_blocks(self, rows: Rows) -> tuple[Rows, Blocks | None]:
        """The rows and their blocks, None where tokens are told apart one by one.

        Raises ValueError for attention in which what is grouped would depend on later tokens.
        """
        if self.block_size == 1 and self.variant != "quantize":
            return rows, None
        rows = with_strides(rows)
        if (blocks := Blocks.of(rows, self.block_size)) is not None:
            return rows, blocks
        if self.block_size > 1:
            raise ValueError(
                f"sparsefinder with blocks of {self.block_size} tokens needs self-attention in which all queries "
                "see the same keys, not causal, packed, windowed or cross-attention; use block_size=1"
            )
        raise ValueError(
            "sparsefinder's buckets depend on all tokens of an example, so variant 'quantize' cannot be used in "
            "causal, packed, windowed or cross-attention; use variant 'kmeans' or 'distance'"
        )

    def projected(self, rows: Rows, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, H, n, D) and keys (B, G, m, D), tokens or means of blocks, projected: (B, H, n or m, rank)."""
        names = ("query",) if self.shared else ("query", "key", "offset")
        weights = {name: self.parameter(rows, name).to(rows.exact) for name in names}
        key = repeat_heads(key, query.shape[1] // key.shape[1])
        return groups.project(weights, query.to(rows.exact), key.to(rows.exact))

    def pairs(self, rows: Rows) -> Tensor:
        """The valid pairs that `kmeans` or `quantize` predicts, listed: int64 (4, P) of example, head, query and key.

        In order, and without window and global tokens. No query is compared with all keys: time and memory grow with
        the sum over groups of their queries times their keys, and for `kmeans` with tokens times clusters. Raises
        ValueError for blocks and for `distance`.
        """
        if self.block_size > 1 or self.variant == "distance":
            raise ValueError(
                "pairs are listed for variants 'kmeans' and 'quantize' with block_size=1, "
                f"got {self.variant!r} with block_size={self.block_size}"
            )
        rows, _ = self.in_blocks(rows)
        query, key = self.projected(rows, rows.query, rows.key)
        if self.variant == "kmeans":
            centers = self.parameter(rows, "centers")
            one, other = (listing.members(groups.nearest(each, centers, self.top)) for each in (query, key))
        else:
            real = _real_keys(rows)
            one, other = (
                listing.in_buckets(groups.buckets(each, real, self.bucket_size), self.bucket_size)
                for each in (query, key)
            )
        return listing.valid(rows, listing.sharing(one, other))

    def near(self, rows: Rows, query: Tensor, key: Tensor, real: Tensor) -> Tensor:
        """The pairs of projected queries and keys that are close by the variant, bool (B, H, n, m).

        `real` (B or 1, 1, m) says which keys are no padding.
        """
        if self.variant == "distance":
            return groups.within(query, key, float(self.threshold))
        if self.variant == "kmeans":
            centers = self.parameter(rows, "centers")
            one, other = (groups.nearest(each, centers, self.top) for each in (query, key))
            return groups.share_cluster(one, other)
        one, other = (groups.buckets(each, real, self.bucket_size) for each in (query, key))
        return groups.share_bucket(one, other)

    def _graph(self, rows: Rows, blocks: Blocks) -> BlockGraph:
        means = (blocks.means(states) for states in (rows.query, rows.key))
        query, key = self.projected(rows, *means)
        present = blocks.present(query.device)
        place = torch.arange(1, blocks.count + 1, device=query.device)
        end = present.sum(dim=-1, keepdim=True) - self.global_tokens
        around = fixed(place[:, None], place, end, self.window, self.global_tokens)
        return BlockGraph.of(rows, blocks, self.near(rows, query, key, present[:, :, 0]) | around)


def _real_keys(rows: Rows) -> Tensor:
    """Which keys are no padding, bool (B or 1, 1, S), where all queries see the same."""
    keys, shown = rows.key.shape[2], rows.shown
    real = rows.query.new_ones(1, 1, keys, dtype=torch.bool) if shown is None else shown[:, :1, 0]
    return real.expand(-1, 1, keys)
