"""How well the pairs that a layout shows are those that a rule keeps when it sees all: the metrics of Sparsefinder."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.pairs import valid_queries
from crisp_attention.methods.part import Gold
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules.base import Rule


@dataclass
class GraphScores:
    """Of each example and head, (B, H): a predicted graph E against the gold graph G, over valid pairs.

    Parameters
    ----------
    sparsity, gold_sparsity
        The share of valid pairs outside E, and outside G.
    recall, precision
        The share of G that is in E, and of E that is in G (NaN where E is empty).
    exact
        The share of queries all of whose gold keys are in E: with entmax, their rows are those of full attention.
    kept_mass
        The weight that full attention gives to pairs in E, mean over queries.
    output_error
        The norm of the change of the output, if the method's rule sees E alone, over that of full attention's; None
        where it was not asked for.
    """

    sparsity: Tensor
    gold_sparsity: Tensor
    recall: Tensor
    precision: Tensor
    exact: Tensor
    kept_mass: Tensor
    output_error: Tensor | None = None

    def lists(self) -> dict[str, list[list[float]]]:
        """By name, the scores of each example and head."""
        return {name: each.tolist() for name, each in _there(self).items()}

    def means(self) -> dict[str, list[float]]:
        """By name, the mean of each head over the examples; without those where a score is not defined."""
        return {name: each.nanmean(dim=0).tolist() for name, each in _there(self).items()}


@dataclass(frozen=True)
class FullGraph:
    """What a rule keeps of all valid pairs of some rows: G, to compare layouts with.

    `gold` and `weights` (B, H, L, S), `value` (B, H, S, Dv), `real` (…, L, 1) False for padding.
    """

    rule: Rule
    rows: Rows
    value: Tensor
    real: Tensor
    gold: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rule: Rule, rows: Rows, value: Tensor) -> "FullGraph":
        """Values (B, H, S, Dv)."""
        gold, weights = kept(rule, rows, rows.valid)
        return cls(rule, rows, value, valid_queries(rows.valid)[..., None], gold, weights)

    def scores(
        self,
        layout: Layout,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        rule: Rule | None = None,
        output: bool = True,
    ) -> GraphScores:
        """Of the pairs that a layout shows, with further parameters of the layer.

        `output`: the error as well, of attention by `rule` to these pairs; by default that of the graph.
        """
        rows = replace(self.rows, parameters={**self.rows.parameters, **(parameters or {})})
        seen = layout.visible(rows)
        found = self.scores_of(seen)
        if output:
            found.output_error = self._output_error(kept(rule or self.rule, rows, seen)[1])
        return found

    def scores_of(self, seen: Tensor) -> GraphScores:
        """Of these pairs, bool (B, H, L, S), without the error of the output."""
        real, valid = self.real[..., 0], self._valid
        # as numbers: adding up booleans takes several times as long
        here, gold = (seen & valid).to(self.weights.dtype), self._gold
        both, of_row = (here * gold).sum(dim=-1), gold.sum(dim=-1)
        pairs, queries = valid.sum(dim=(2, 3)), real.expand(both.shape).sum(dim=2)
        shown = here.sum(dim=(2, 3))
        return GraphScores(
            sparsity=1 - shown / pairs,
            gold_sparsity=1 - of_row.sum(dim=2) / pairs,
            recall=both.sum(dim=2) / of_row.sum(dim=2),
            precision=both.sum(dim=2) / shown,
            exact=((both == of_row) & real).sum(dim=2) / queries,
            kept_mass=(self.weights * here).sum(dim=(2, 3)) / queries,
        )

    @cached_property
    def _valid(self) -> Tensor:
        return (self.rows.valid & self.real).expand_as(self.gold)

    @cached_property
    def _gold(self) -> Tensor:
        return (self.gold & self._valid).to(self.weights.dtype)

    def _output_error(self, used: Tensor) -> Tensor:
        value = self.value.to(used.dtype)
        change, whole = ((each * self.real) @ value for each in (used - self.weights, self.weights))
        return change.norm(dim=(2, 3)) / whole.norm(dim=(2, 3))


def gold_of(rule: Rule) -> Gold:
    """The pairs that a rule keeps of all valid ones, as a fitter asks for them."""
    return lambda rows: kept(rule, rows, rows.valid)[0]


def together(scores: list[GraphScores]) -> GraphScores:
    """Those of several batches, one after another."""
    return GraphScores(**{name: torch.cat([getattr(s, name) for s in scores]) for name in _there(scores[0])})


def _there(scores: GraphScores) -> dict[str, Tensor]:
    return {
        each.name: value for each in fields(GraphScores) if (value := getattr(scores, each.name)) is not None
    }


def kept(rule: Rule, rows: Rows, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs that a rule keeps of the visible ones, bool (B, H, L, S), and their weights."""
    keep = rule.select(rows, visible.expand_as(rows.scores))
    weights = rule.weigh(rows, keep)
    return (keep & (weights != 0) if rule.zeros_are_dropped else keep), weights
