from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.branches.base import Attended, Branch, Looking
from crisp_attention.methods.branches.feature_maps import FEATURE_MAPS, LEARNED
from crisp_attention.methods.checks import check_number, check_one_of
from crisp_attention.methods.part import Parameter, Shape
from crisp_attention.methods.ranking import keep_largest, share_count
from crisp_attention.methods.rows import repeat_heads

SCOPES = ("marginal", "all")
COMBINATIONS = ("project", "alpha", "sum", "alone")


@dataclass(frozen=True)
class Linear(Branch):
    """Linear attention to the blocks that `BlockTopK` drops, all but the least (SLA, arXiv 2509.24006, 3.3).

    Of the blocks that the layout drops from a row, the last by its ranking get nothing: a share `negligible` of all
    blocks of the row. The others, the marginal ones, are attended to by sums, φ(q) Σ φ(k) v' / φ(q) Σ φ(k), which take
    as long as there are tokens, and not pairs of them. A row without a marginal block gets nothing. All is computed in
    float32, or better. φ is of queries and keys as they are, so rotary embeddings make absolute positions matter. This
    output, O, joins that of the layout and the rule, Oˢ:

    - `project`: Oˢ + W O + b, with one W and b for all heads of a layer, zero at the start (SLA).
    - `alpha`: α Oˢ + (1 - α) O, α in [0, 1] trained for every head, one at the start. SLA2 (arXiv 2602.12675), whose
      authors have published no code, has one for every block of rows.
    - `sum`: Oˢ + O; `alone`: O, so nothing where a row has no marginal block. Both learn nothing: the paper compares
      with them.

    Parameters
    ----------
    negligible
        The share of a row's blocks, rounded down, that gets nothing, in [0, 1).
    feature_map
        φ: "softmax" over the width of a head, "elu" (+ 1), "relu", or "hedgehog": softmax of (W x, -W x), with one W
        for all heads of a layer, trained.
    scope
        "marginal", or "all": every valid key, as in the code that the authors published later.
    combine
        "project", "alpha", "sum" or "alone".

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.SparseLinear(critical=0.2, block_size=16).branch
    Linear(negligible=0.1, feature_map='softmax', scope='marginal', combine='project')
    """

    negligible: float = 0.1
    feature_map: str = "softmax"
    scope: str = "marginal"
    combine: str = "project"

    name: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        check_number("negligible", self.negligible, "[0, 1)")
        check_one_of("feature_map", self.feature_map, tuple(FEATURE_MAPS))
        check_one_of("scope", self.scope, SCOPES)
        check_one_of("combine", self.combine, COMBINATIONS)

    def check(self, layout: Looking) -> None:
        if self.scope == "marginal" and not layout.ranks_blocks:
            raise ValueError(
                f"linear attention to marginal blocks needs a layout that ranks blocks, such as block_topk, "
                f"got {layout!r}; scope='all' goes with every layout"
            )

    def adds_nothing(self) -> bool:
        return self.scope == "marginal" and self.combine != "alone"

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        width, found = shape.width, {}
        if self.combine == "project":
            found["weight"] = Parameter(torch.zeros(width, width), per_head=False)
            found["bias"] = Parameter(torch.zeros(width), per_head=False)
        if self.combine == "alpha":
            found["alpha"] = Parameter(torch.ones(shape.heads))
        if self.feature_map == LEARNED:
            found["features"] = Parameter(torch.eye(width), per_head=False)
        return found

    def attention(self, call: Attended, output: Tensor) -> Tensor:
        if call.blocks is None or self.is_short(call):
            found, weighed = self._by_pairs(call)
        else:
            found, weighed = self._by_blocks(call, call.blocks)
        reached = weighed > 0
        linear = found / torch.where(reached, weighed, 1.0)  # 0 where nothing weighs, as its gradients
        return self.added(call, output, linear, reached)

    def is_short(self, call: Attended) -> bool:
        """Whether so few tokens take less time pair by pair than by the sums of blocks."""
        return (
            call.blocks is not None
            and call.blocks.blocks.size < 16
            and call.query.shape[2] <= 2 * call.query.shape[3]
        )

    def projection(self, call: Attended) -> tuple[Tensor, Tensor] | None:
        """Weight (Dv, Dv) and bias (Dv,), if there are some. Raises ValueError for values of another width."""
        if self.combine != "project":
            return None
        weight = self.parameter(call, "weight")
        if weight.shape[0] != call.value.shape[3]:
            raise ValueError(
                f"the projection of linear attention is for values as wide as its model's heads, {weight.shape[0]}, "
                f"got values of width {call.value.shape[3]}; combine='alpha' or 'sum' takes any"
            )
        return weight, self.parameter(call, "bias")

    def added(self, call: Attended, output: Tensor, linear: Tensor, reached: Tensor) -> Tensor:
        """What is added to the `output` of layout and rule, given linear attention (B, H, L, Dv).

        `reached` (B, H, L, 1) says where there is any.
        """
        if (projection := self.projection(call)) is not None:
            weight, bias = (each.to(linear.dtype) for each in projection)
            return linear @ weight.T + bias * reached
        if self.combine == "alpha":
            raw = self.parameter(call, "alpha").to(linear.dtype)[:, None, None]
            # bounded, with the gradient of what is not
            alpha = raw + (raw.clamp(0, 1) - raw).detach()
            return (1 - alpha) * (linear - output.to(linear.dtype)) * reached
        return linear - output.to(linear.dtype) if self.combine == "alone" else linear

    def features(self, call: Attended, states: Tensor) -> Tensor:
        """φ of queries or keys, in float32 or better."""
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        if self.feature_map == LEARNED:
            states = states @ self.parameter(call, "features").to(states.dtype).T
        return FEATURE_MAPS[self.feature_map](states)

    def _by_pairs(self, call: Attended) -> tuple[Tensor, Tensor]:
        """Numerators (B, H, L, Dv) and denominators (B, H, L, 1), pair by pair: the definition."""
        shared = call.query.shape[1] // call.key.shape[1]
        query, key = (self.features(call, states) for states in (call.query, call.key))
        weights = torch.where(self.pairs(call), query @ repeat_heads(key, shared).transpose(2, 3), 0.0)
        value = repeat_heads(call.value, shared).to(weights.dtype)
        return weights @ value, weights.sum(dim=-1, keepdim=True)

    @torch.no_grad()
    def pairs(self, call: Attended) -> Tensor:
        if call.blocks is None:
            return self._pairs(call)
        return call.rows.valid & replace(call.blocks, seen=self.marginal(call.blocks)).pairs(call.rows)

    @torch.no_grad()
    def _pairs(self, call: Attended) -> Tensor:
        if self.scope == "all":
            return call.rows.valid
        ranking = call.layout.ranking(call.rows)
        return call.rows.valid & ranking.pairs(self._marginal(ranking.ranked, ranking.present, ranking.kept))

    def _by_blocks(self, call: Attended, graph: BlockGraph) -> tuple[Tensor, Tensor]:
        """The same where queries choose in blocks: by the sums of every block of keys."""
        blocks, shared = graph.blocks, call.query.shape[1] // call.key.shape[1]
        query = blocks.divided(self.features(call, call.query))
        key = blocks.divided(self.features(call, call.key), fill=0.0)
        value = blocks.divided(call.value.to(key.dtype), fill=0.0)
        marginal = self.marginal(graph).to(key.dtype)
        sums = key.transpose(-1, -2) @ value
        chosen = (marginal @ repeat_heads(sums.flatten(3), shared)).unflatten(3, sums.shape[3:])
        weights = marginal @ repeat_heads(key.sum(dim=3), shared)
        return blocks.joined(query @ chosen), blocks.joined(query @ weights[..., None])

    @torch.no_grad()
    def marginal(self, graph: BlockGraph) -> Tensor:
        """The blocks that each block of queries attends to, bool, broadcastable to (B, H, n, n)."""
        assert graph.seen is not None
        present = graph.blocks.present(graph.seen.device)
        if self.scope == "all":
            return present.expand_as(graph.seen)
        if graph.ranked is None:  # as all are critical
            return torch.zeros_like(graph.seen)
        return self._marginal(graph.ranked, present, graph.seen)

    def _marginal(self, ranked: Tensor, present: Tensor, critical: Tensor) -> Tensor:
        """The blocks that are neither critical nor negligible, bool, like `ranked`."""
        count = share_count(present.sum(dim=-1, keepdim=True), self.negligible, minimum=0)
        count = (count - critical.sum(dim=-1, keepdim=True)).clamp(min=0)
        rest = (present & ~critical).expand_as(ranked)
        # a row that ranks by NaN keeps all its blocks
        return keep_largest(ranked, rest, count) & rest
