from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.layouts.base import Layout
from crisp_attention.methods.layouts.sparsefinder import groups
from crisp_attention.methods.layouts.sparsefinder.clusters import centers, check_enough
from crisp_attention.methods.layouts.sparsefinder.fixed import check_fixed, fixed_pairs, fixed_sight
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.part import Fitter, Gold, Parameter, Shape
from crisp_attention.methods.rows import Rows, repeat_heads
from crisp_attention.methods.sight import Sight, Traits

POINTS = 10_000  # of a head that are clustered


@dataclass(frozen=True)
class Routing(Layout):
    """The keys in the query's cluster, by k-means on queries and keys (Routing Transformer, arXiv 2003.05997).

    Queries and keys are clustered as they are, of unit length; `crisp.fit(model, batches)` finds the centres of every
    head. Each joins its `top` nearest clusters, and a pair is visible if both have one in common. The centres stay as
    they were fitted, and clusters may be of any size: a query's choice depends on no other token.
    A window around the query's own token and global tokens are visible too, as in `Sparsefinder`, which clusters
    learned projections instead.

    Parameters
    ----------
    clusters, top
        The number of clusters of a head, and how many of them a token joins.
    window
        Tokens of the band around the query's own token, an odd number, or 0 for none. Without a window and global
        tokens a query may see no key, and its output is then 0.
    global_tokens
        How many first tokens see everything and are seen by all; the same number of last ones where all queries see the
        same keys, as in encoders. In layers with sliding windows they are those that the query's window holds.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.Method(layout=crisp.Routing(8), rule=crisp.Entmax(1.5)).spec
    'routing:clusters=8+entmax:alpha=1.5'
    """

    clusters: int = 16
    top: int = 1
    window: int = 3
    global_tokens: int = 1

    name: ClassVar[str] = "routing"
    uses_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("clusters", "top"):
            check_whole(name, getattr(self, name), 1)
        if self.top > self.clusters:
            raise ValueError(f"top must be at most clusters, {self.clusters}, got {self.top}")
        check_fixed(self.window, self.global_tokens)

    @property
    def learned(self) -> "Routing":
        """The same without window and global tokens."""
        return replace(self, window=0, global_tokens=0)

    @property
    def shared_fit(self) -> "Routing":
        """The layout that stands for all whose parameters one fitter finds."""
        return Routing()

    def shows_everything(self, keys: int | None = None) -> bool:
        return self.top == self.clusters

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        size = (shape.heads, 1, self.clusters, shape.width)
        return {"centers": Parameter(torch.zeros(size), trained=False)}

    def fitter(self, shape: Shape, gold: Gold, seed: int = 0) -> Fitter:
        return _Clustering(self, seed)

    def visible(self, rows: Rows) -> Tensor:
        if self.shows_everything():
            return rows.valid
        near = groups.share_cluster(*self._clusters(rows))
        return rows.valid & (near | fixed_pairs(rows, self.window, self.global_tokens))

    def sight(self, rows: Rows) -> Sight | None:
        if self.shows_everything():
            return None
        return fixed_sight(Traits("members", *self._clusters(rows)), self.window, self.global_tokens)

    def _clusters(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Which queries and keys are in which clusters."""
        found = self.parameter(rows, "centers")
        query, key = (groups.nearest(each, found, self.top) for each in _unit(rows))
        return query, key


def _unit(rows: Rows) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, L or S, D) of unit length."""
    key = repeat_heads(rows.key, rows.query.shape[1] // rows.key.shape[1])
    return normalize(rows.query.to(rows.exact), dim=-1), normalize(key.to(rows.exact), dim=-1)


class _Clustering:
    """Finds the centres: a `Fitter`. Of the tokens it sees it keeps at most `POINTS` queries and keys, at random."""

    def __init__(self, layout: Routing, seed: int) -> None:
        self.layout, self.seed = layout, seed
        self.random = torch.Generator().manual_seed(seed)
        self.points, self.order, self.seen = torch.empty(0), torch.empty(0), 0
        self.found: dict[int, Tensor] = {}

    def see(self, rows: Rows) -> None:
        query, key = _unit(rows)
        real = valid_queries(rows.valid)[:, 0].expand(len(query), -1)
        valid = rows.valid.any(dim=-2)[:, 0].expand(len(key), -1)
        new = torch.cat([query.transpose(1, 2)[real], key.transpose(1, 2)[valid]]).cpu()
        self.seen += len(new) // 2
        points = torch.cat([self.points.reshape(-1, *new.shape[1:]), new])
        order = torch.cat([self.order, torch.rand(len(new), generator=self.random)])
        kept = order.argsort()[:POINTS]
        self.points, self.order, self.found = points[kept], order[kept], {}
        self.device = rows.query.device

    def values(self, layout: Routing | None = None) -> dict[str, Tensor]:
        """Those of the layout, or of another one: with more clusters, say."""
        count = (layout or self.layout).clusters
        if count not in self.found:
            check_enough(min(self.seen, POINTS), "tokens", count)
            self.found[count] = centers(self.points.double(), count, 1, self.seed).to(self.device)
        return {"centers": self.found[count]}
