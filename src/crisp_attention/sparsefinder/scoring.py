"""Scoring settings layer by layer: what their layouts show of a trained model's examples, against what entmax keeps."""

import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from crisp_attention.insight.fitting import TOKENS, seed_of_layer
from crisp_attention.insight.graphs import FullGraph, gold_of
from crisp_attention.insight.showing import show
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.layouts.sparsefinder.fixed import fixed_pairs
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.models.host import AttentionLayer
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.sparsefinder.settings import Setting
from crisp_attention.sparsefinder.trained import entmax_layers

Batches = Iterable[Mapping[str, Any]]
Values = dict[str, Tensor]
# scores by name, of each example and head
Lists = dict[str, list[list[float]]]
# a setting by its name, and a seed
Point = tuple[str, int]


@dataclass
class Scored:
    """The scores of all settings, one row per setting, seed, layer and head, and what was fitted for them.

    `values` are by setting and seed, then by layer; `refused` says why a setting was left out. A setting that one layer
    refuses is left out in all. `fitted_to` and `scored_on` count examples.
    """

    table: pd.DataFrame
    values: dict[Point, dict[int, Values]] = field(default_factory=lambda: defaultdict(dict))
    refused: dict[str, str] = field(default_factory=dict)
    fitted_to: int = 0
    scored_on: int = 0


def score(
    model: nn.Module,
    batches: Batches,
    held_out: Batches,
    settings: Sequence[Setting],
    *,
    seeds: int = 3,
    tokens: int = TOKENS,
    progress: bool = True,
) -> Scored:
    """Fit every setting to the batches of a model with entmax, and score it on those held out.

    One layer is looked at after another, each in a pass of its own over both, of which the queries, keys and values
    of the first batches that have `tokens` tokens together are held. Projections are fitted once for each seed; the
    settings that differ in other things share them. The model does not change.

    Raises OptionError for a model without entmax, ValueError for a rank beyond the width of a head, for no batch, and
    if no setting is left.
    """
    sparse, layers = SparseModel.of(model), entmax_layers(model)
    for layer, method in layers.items():
        for family in _families(settings):
            family.fitter(sparse.host.shape(layer.module), gold_of(method.rule), 0)  # checks its options
    scored, frames = Scored(pd.DataFrame()), []
    bar = tqdm(layers.items(), desc="scoring", unit="layer", disable=not progress, file=sys.stderr)
    for layer, method in bar:
        seen = _seen(model, layer, batches, tokens)
        rows = [rows for rows, _ in seen]
        scored.fitted_to = sum(len(each.query) for each in rows)
        fitted: dict[Point, Values] = {}
        for seed in range(seeds):
            bar.set_postfix_str(f"fitting, seed {seed}")
            shape, number = sparse.host.shape(layer.module), seed_of_layer(seed, layer.index)
            left = [each for each in settings if each.name not in scored.refused]
            found_by_name = _fitted(left, rows, method, shape, number, scored.refused)
            fitted |= {(name, seed): each for name, each in found_by_name.items()}
        for point, values in fitted.items():
            scored.values[point][layer.index] = values
        del seen, rows
        held = _seen(model, layer, held_out, tokens)
        scored.scored_on = sum(len(each.query) for each, _ in held)
        found = _Scores(settings, seeds, fitted, scored.refused)
        for number, (rows_of_batch, value) in enumerate(held):
            bar.set_postfix_str(f"batch {number + 1} of {len(held)}")
            found.add(FullGraph.of(method.rule, rows_of_batch, value))
        frames.append(found.table().assign(layer=layer.index))
    table = pd.concat(frames, ignore_index=True)
    if scored.refused:
        table = table[~table["setting"].isin(list(scored.refused))].reset_index(drop=True)
    if table.empty:
        name, reason = next(iter(scored.refused.items()))
        raise ValueError(f"no setting is left to compare; {name}: {reason}")
    first = ["variant", "setting", "seed", "layer", "head"]
    scored.table = table[[*first, *(name for name in table if name not in first)]]
    return scored


def _seen(
    model: nn.Module, layer: AttentionLayer, batches: Batches, tokens: int
) -> list[tuple[Rows, Tensor]]:
    kept = []

    def see(seen: Observation) -> None:
        assert seen.value is not None
        every = torch.arange(len(seen.rows.query), device=seen.rows.query.device)
        kept.append((seen.rows.of_examples(every), seen.value))  # without the scores

    show(model, layer, batches, see, tokens)
    return kept


def _families(settings: Sequence[Setting]) -> dict[Layout, list[Setting]]:
    """The settings with something to fit, by the layout whose fitter they share."""
    families: dict[Layout, list[Setting]] = defaultdict(list)
    for each in settings:
        if each.is_fitted:
            families[each.layout.shared_fit].append(each)
    return families


def _fitted(
    settings: Sequence[Setting],
    rows: Sequence[Rows],
    method: Method,
    shape: Shape,
    seed: int,
    refused: dict[str, str],
) -> dict[str, Values]:
    """What is fitted for each setting, by its name; those whose sample is too small are `refused`."""
    found: dict[str, Values] = {}
    for family, members in _families(settings).items():
        fitter: Any = family.fitter(shape, gold_of(method.rule), seed)
        for each_rows in rows:
            fitter.see(each_rows)
        for each in members:
            try:
                values = fitter.values() if each.layout == family else fitter.values(each.layout)
            except ValueError as error:
                refused[each.name] = str(error)
                continue
            found[each.name] = {f"{family.kind}.{name}": value for name, value in values.items()}
    return found


class _Scores:
    """The scores of one layer, batch by batch."""

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: int,
        fitted: Mapping[Point, Values],
        refused: dict[str, str],
    ) -> None:
        self.fitted, self.refused, self.seeds = fitted, refused, seeds
        self.points = {
            (each.name, seed): (each.variant, layout)
            for each in settings
            for seed in range(seeds)
            if (layout := each.at(seed)) is not None
        }
        # as lists: small tensors that stay keep the allocator from reusing the room between them, gigabytes in the end
        self.found: dict[Point, list[Lists]] = defaultdict(list)
        self.alone: dict[Point, list[Lists]] = defaultdict(list)

    def add(self, full: FullGraph) -> None:
        # of the settings that differ in their windows alone, what is learned is looked at once
        learned: dict[tuple[Layout, int], tuple[Tensor, Lists]] = {}
        for (name, seed), (_, layout) in self.points.items():
            if name in self.refused:
                continue
            rows = replace(
                full.rows, parameters={**full.rows.parameters, **self.fitted.get((name, seed), {})}
            )
            try:
                if (part := layout.learned) is None:
                    self.found[name, seed].append(full.scores_of(layout.visible(rows)).lists())
                    continue
                if (part, seed) not in learned:
                    if len(learned) == self.seeds:  # those of the setting before, whose windows all were
                        learned.pop(next(iter(learned)))
                    seen = part.visible(rows)
                    learned[part, seed] = seen, full.scores_of(seen).lists()
            except ValueError as error:  # buckets in decoders
                self.refused[name] = str(error)
                continue
            near, alone = learned[part, seed]
            around = fixed_pairs(rows, layout.window, layout.global_tokens)  # type: ignore[attr-defined]
            self.found[name, seed].append(full.scores_of(near | around).lists())
            self.alone[name, seed].append(alone)

    def table(self) -> pd.DataFrame:
        frames = []
        for point, scores in self.found.items():
            means = _means(scores)
            if point in self.alone:
                means |= {f"{name}_without_window": each for name, each in _means(self.alone[point]).items()}
            variant, _ = self.points[point]
            heads = range(len(means["recall"]))
            frames.append(
                pd.DataFrame(
                    {"variant": variant, "setting": point[0], "seed": point[1], "head": heads, **means}
                )
            )
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"setting": []})


def _means(scores: list[Lists]) -> dict[str, list[float]]:
    """The mean of each head over the examples of all batches; without those where a score is not defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a score may be defined for no example
        return {
            name: np.nanmean([row for each in scores for row in each[name]], axis=0).tolist()
            for name in scores[0]
        }
