"""`crisp.fit(model, batches)`: parameters of a method that are not trained, found from what its layers see."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from crisp_attention.extras import needs
from crisp_attention.insight.graphs import FullGraph, GraphScores, gold_of, together
from crisp_attention.insight.showing import show
from crisp_attention.kernels.blocks import exactly
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.part import Fitter, Parameter, Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Rule
from crisp_attention.models.host import device_of
from crisp_attention.models.parameters import fill_parameters, wanted_by
from crisp_attention.models.rollback import all_or_nothing, everything
from crisp_attention.models.settings import settings_on
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.tables import as_html, as_text

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = 10  # the second of so many examples, and every so many-th after it, is not fitted on
TOKENS = 50_000


@dataclass(frozen=True, repr=False)
class Fit:
    """What `crisp.fit` did: the number of batches, and of every layer what was fitted and how well it predicts.

    Examples
    --------
    >>> Fit(2, {"encoder.layer.0": {"layout.centers": (12, 8, 64)}})
    Fitted the methods of 1 layers on 2 batches
    parameters                    sparsity  recall  exact  kept mass  name
    layout.centers [12, 8, 64]                                        encoder.layer.0
    """

    batches: int
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    scores: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> "pd.DataFrame":
        """How the graph of each layer and head compares with the gold one, on the examples that were held out.

        The columns are those of `GraphScores`, means over examples; with `_without_window` at their end those of the
        learned part alone, for layouts that add fixed patterns to it. Layers whose heads have several methods are not
        scored. Raises ValueError if no layer was, and ModuleNotFoundError where pandas is not installed.
        """
        if not self.scores:
            raise ValueError("nothing was scored: the heads of every fitted layer have several methods")
        pd = needs("pandas", extra="runs")
        frames = [
            pd.DataFrame(
                {"layer": self.layers[name], "name": name, "head": range(len(scores["recall"])), **scores}
            )
            for name, scores in self.scores.items()
        ]
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, list[str], list[list[str]]]:
        names = ("sparsity", "recall", "exact", "kept_mass")
        rows = []
        for layer, shapes in self.shapes.items():
            scores = self.scores.get(layer, {})
            means = [f"{np.mean(scores[name]):.1%}" if scores else "" for name in names]
            rows.append([", ".join(f"{n} {list(shape)}" for n, shape in shapes.items()), *means, layer])
        caption = f"Fitted the methods of {len(rows)} layers on {self.batches} batches"
        return caption, ["parameters", *(name.replace("_", " ") for name in names), "name"], rows


def fit(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    gold: Rule | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Fit the parameters of a sparse model's methods that are not trained, such as the projections of `Sparsefinder`.

    The model runs with its rules but without the layouts that are to be fitted, in evaluation mode and without
    gradients; its weights do not change. What was fitted before is replaced. One layer is fitted after another, each
    in a pass of its own over the batches, which holds queries and keys of the first batches that have `tokens` tokens
    together: for 12 heads of width 64 and 50,000 tokens, about 300 MB. The scores of the layer for one batch,
    (examples, heads, tokens, tokens), come on top, several times over: give long texts in small batches. One example in
    ten is held out, to tell how well the others were learned.

    Parameters
    ----------
    model
        A model that `crisp.sparsify` made sparse.
    batches
        A `DataLoader` or a list of mappings of the arguments of the model's forward, read once for each layer.
    gold
        The rule whose kept pairs are to be found, by default that of each layer's method. For those of `TopK(0.8)`,
        give it here and `Dense()` in the method: its softmax is then over all that was found, most of which a top-k
        rule would drop once more.
    tokens
        No further batch is read once a layer has seen as many, padding included.
    seed
        Of what fitting draws; each layer draws from it and its own number.
    progress
        Whether a bar on standard error shows the layers.

    Returns
    -------
    What was fitted, and how well it predicts the examples that were held out.

    Raises
    ------
    ValueError
        If the model is not sparse, none of its methods has anything to fit, the rule keeps every pair so that there
        is nothing to predict, there are fewer than two examples, a layer saw none, the sample is too small, or what
        was fitted has another shape than it should or is not finite.
        The model is then what it was.
    TypeError
        For batches that are not mappings, or can be read only once.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> crisp.fit(crisp.sparsify(model, crisp.TopK(sparsity=0.5)), [])
    Traceback (most recent call last):
    ValueError: nothing to fit: topk:sparsity=0.5 has no parameters that are fitted
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("crisp.fit trains projections, which torch.inference_mode() does not allow")
    sparse = SparseModel.of(model)
    fitters: dict[int, _OfLayer] = {}
    for layer in sparse.layers:
        method = settings_on(layer).method
        if method and (wanted := _fitted(wanted_by(sparse.host, layer.module, method))):
            shape, number = sparse.host.shape(layer.module), seed_of_layer(seed, layer.index)
            fitters[layer.index] = _OfLayer(layer.name, method, shape, wanted, number, gold)
    if not fitters:
        specs = dict.fromkeys(map(str, sparse.methods.values()))
        raise ValueError(f"nothing to fit: {', '.join(specs)} has no parameters that are fitted")
    layers = [layer for layer in sparse.layers if layer.index in fitters]
    if isinstance(batches, Iterator) and len(layers) > 1:
        raise TypeError(
            f"batches are read once for each of {len(layers)} layers: expected a DataLoader or a list, "
            f"got {type(batches).__name__}"
        )
    found: dict[int, dict[str, Tensor]] = {}
    scores, number = {}, 0
    bar = tqdm(layers, desc="fitting", unit="layer", disable=not progress, file=sys.stderr)
    for layer in bar:
        fitter = fitters[layer.index]
        number = max(number, show(model, layer, batches, fitter.see, tokens))
        with exactly(device_of(sparse.root)):
            found[layer.index] = fitter.values()
            if quality := fitter.scores(found[layer.index]):
                scores[layer.name] = quality
        fitter.forget()
    with all_or_nothing(everything(sparse.host, sparse.root)):
        for layer in layers:
            fill_parameters(layer.module, found[layer.index])
    shapes = {
        layer.name: {name: tuple(each.shape) for name, each in found[layer.index].items()} for layer in layers
    }
    return Fit(number, shapes, scores, {layer.name: layer.index for layer in layers})


class _OfLayer:
    """The fitters of one layer: those of each method of its heads see all heads, and give what is theirs."""

    def __init__(
        self,
        name: str,
        method: LayerMethod,
        shape: Shape,
        wanted: Mapping[str, Parameter],
        seed: int,
        gold: Rule | None,
    ) -> None:
        self.groups = method.groups() if isinstance(method, PerHead) else {method: list(range(shape.heads))}
        self.name, self.wanted, self.gold = name, wanted, gold
        self.examples = 0
        self.held_out: list[tuple[Rows, Tensor]] = []
        for each in self.groups:
            if (gold or each.rule).drops_nothing() and any(part.fitted_to_rule for part in each.parts):
                raise ValueError(
                    f"nothing to predict in {name}: "
                    f"{f'gold={gold!r}' if gold else f'the rule of {str(each)!r}'} keeps every pair; expected one that "
                    "drops pairs, such as entmax or topk"
                )
        self.fitters: list[tuple[str, list[int], Fitter]] = [
            (part.kind, heads, fitter)
            for each, heads in self.groups.items()
            for part in each.parts
            if (fitter := part.fitter(shape, gold_of(gold or each.rule), seed)) is not None
        ]

    def see(self, seen: Observation) -> None:
        rows, value = seen.rows, seen.value
        assert value is not None
        size = len(rows.query)
        numbers = torch.arange(self.examples, self.examples + size)
        held_out = (numbers % HELD_OUT == 1).to(rows.query.device)
        self.examples += size
        if held_out.any():
            index = held_out.nonzero()[:, 0]
            self.held_out.append((rows.of_examples(index), value[index]))
        if not held_out.all():
            index = (~held_out).nonzero()[:, 0]
            with exactly(rows.query.device):
                for _, _, fitter in self.fitters:
                    fitter.see(rows.of_examples(index))

    def values(self) -> dict[str, Tensor]:
        if not self.examples:
            raise ValueError(f"nothing was fitted for {self.name}: no attention call of it ran")
        if not self.held_out:
            raise ValueError("fitting needs at least 2 examples, one of which is held out, got 1")
        found: dict[str, Tensor] = {}
        for kind, heads, fitter in self.fitters:
            for own, value in fitter.values().items():
                name = f"{kind}.{own}"
                _check(self.name, name, value, self.wanted.get(name))
                if name in found and self.wanted[name].per_head:
                    found[name][heads] = value[heads]
                else:
                    found.setdefault(name, value.clone())
        if missing := sorted(set(self.wanted) - set(found)):
            raise ValueError(f"{self.name}: no fitter of its method returned {missing[0]}")
        return found

    def scores(self, values: Mapping[str, Tensor]) -> dict[str, list[float]]:
        """Of each head, on the examples that were held out; nothing where the heads have several methods."""
        if len(self.groups) > 1:
            return {}
        (method,) = self.groups
        rule, layouts = self.gold or method.rule, [method.layout]
        if (learned := method.layout.learned) is not None:
            layouts.append(learned)
        every: list[list[GraphScores]] = [[] for _ in layouts]
        with torch.no_grad():
            for rows, value in self.held_out:
                full = FullGraph.of(rule, rows, value)
                for layout, scores in zip(layouts, every, strict=True):
                    scores.append(full.scores(layout, values, rule=method.rule))
        found, *alone = (together(each).means() for each in every)
        return found | {f"{name}_without_window": each for means in alone for name, each in means.items()}

    def forget(self) -> None:
        """What was kept of the layer's calls is freed."""
        self.fitters, self.held_out = [], []


def _fitted(wanted: Mapping[str, Parameter]) -> dict[str, Parameter]:
    return {name: each for name, each in wanted.items() if not each.trained}


def _check(layer: str, name: str, value: Tensor, wanted: Parameter | None) -> None:
    if wanted is None:
        raise ValueError(f"{layer}: {name} was fitted, but its method has no such parameter")
    if value.shape != wanted.value.shape:
        raise ValueError(
            f"{layer}: {name} must have the shape {tuple(wanted.value.shape)}, got {tuple(value.shape)}"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{layer}: {name} is not finite after fitting")


def seed_of_layer(seed: int, layer: int) -> int:
    """What a layer draws from."""
    # not their sum, by which the second layer of seed 0 would repeat the first of seed 1
    return int(np.random.SeedSequence((seed, layer)).generate_state(1)[0])
