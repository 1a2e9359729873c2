"""`crisp.fit(model, batches)`: parameters of a method that are not trained, found from what its layers see."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crisp_attention.insight.tables import as_html, as_text
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.part import Fitter, Parameter, Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.models.borrowing import borrowed, inputs
from crisp_attention.models.parameters import fill_parameters, wanted_by
from crisp_attention.models.rollback import all_or_nothing, everything
from crisp_attention.models.settings import Settings, settings_on
from crisp_attention.models.sparse_model import SparseModel


@dataclass(frozen=True, repr=False)
class Fit:
    """The result of `crisp.fit`: the number of batches, and by layer name the calls seen and the shapes fitted.

    Examples
    --------
    >>> Fit(2, {"encoder.layer.0": 2}, {"encoder.layer.0": {"layout.centers": (12, 8, 64)}})
    Fitted the methods of 1 layers on 2 batches
    calls                  parameters  name
        2  layout.centers [12, 8, 64]  encoder.layer.0
    """

    batches: int
    calls: Mapping[str, int]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, list[str], list[list[str]]]:
        rows = [
            [str(self.calls[layer]), ", ".join(f"{n} {list(shape)}" for n, shape in shapes.items()), layer]
            for layer, shapes in self.shapes.items()
        ]
        caption = f"Fitted the methods of {len(rows)} layers on {self.batches} batches"
        return caption, ["calls", "parameters", "name"], rows


def fit(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Fit the parameters of a sparse model's methods that are not trained, on the inputs of its layers.

    The model runs dense, in evaluation mode and without gradients; of a batch, only what the
    fitters keep is stored. Its weights do not change. Earlier fitted values are replaced.

    Parameters
    ----------
    model
        A model that `crisp.sparsify` made sparse.
    batches
        Mappings of the arguments of its forward.
    seed
        The seed of random draws in fitting; each layer uses it together with its own number.
    progress
        Called after each batch with the number of batches so far.

    Returns
    -------
    What was fitted.

    Raises
    ------
    ValueError
        If the model is not sparse, none of its methods has anything to fit, there is no batch, a layer saw none, or
        fitted values have a wrong shape or are not finite. The model is then unchanged.
    TypeError
        For batches that are not mappings.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> crisp.fit(crisp.sparsify(model, crisp.TopK(sparsity=0.5)), [])
    Traceback (most recent call last):
    ValueError: nothing to fit: topk:sparsity=0.5 has no parameters that are fitted
    """
    sparse = SparseModel.of(model)
    fitters = {
        layer.index: _OfLayer(method, sparse.host.shape(layer.module), wanted, _seed(seed, layer.index))
        for layer in sparse.layers
        if (method := settings_on(layer).method) is not None
        and (wanted := _fitted(wanted_by(sparse.host, layer.module, method)))
    }
    if not fitters:
        specs = dict.fromkeys(map(str, sparse.methods.values()))
        raise ValueError(f"nothing to fit: {', '.join(specs)} has no parameters that are fitted")

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        if (fitter := fitters.get(settings.index)) is not None:
            fitter.see(seen.rows)

    number = 0
    with borrowed(model, observe=observe, dense=True, evaluate=True, untouched=True):
        for batch in batches:
            model(**inputs(sparse.host, sparse.root, batch))
            number += 1
            if progress is not None:
                progress(number)
    if not number:
        raise ValueError("nothing was fitted: there was no batch")
    layers = {layer.index: layer for layer in sparse.layers if layer.index in fitters}
    values = {index: fitters[index].values(layer.name) for index, layer in layers.items()}
    with all_or_nothing(everything(sparse.host, sparse.root)):
        for index, layer in layers.items():
            fill_parameters(layer.module, values[index])
    return Fit(
        number,
        {layer.name: fitters[index].calls for index, layer in layers.items()},
        {
            layer.name: {name: tuple(each.shape) for name, each in values[index].items()}
            for index, layer in layers.items()
        },
    )


class _OfLayer:
    """The fitters of one layer: those of each method of its heads see all heads, and give what is theirs."""

    def __init__(self, method: LayerMethod, shape: Shape, wanted: Mapping[str, Parameter], seed: int) -> None:
        groups = method.groups() if isinstance(method, PerHead) else {method: list(range(shape.heads))}
        self.wanted, self.calls = wanted, 0
        self.fitters: list[tuple[str, list[int], Fitter]] = [
            (part.kind, heads, fitter)
            for each, heads in groups.items()
            for part in each.parts
            if (fitter := part.fitter(shape, seed)) is not None
        ]

    def see(self, rows: Rows) -> None:
        self.calls += 1
        for _, _, fitter in self.fitters:
            fitter.see(rows)

    def values(self, layer: str) -> dict[str, Tensor]:
        if not self.calls:
            raise ValueError(f"nothing was fitted for {layer}: no attention call of it ran")
        found: dict[str, Tensor] = {}
        for kind, heads, fitter in self.fitters:
            for own, value in fitter.values().items():
                name = f"{kind}.{own}"
                _check(layer, name, value, self.wanted.get(name))
                if name in found and self.wanted[name].per_head:
                    found[name][heads] = value[heads]
                else:
                    found.setdefault(name, value.clone())
        if missing := sorted(set(self.wanted) - set(found)):
            raise ValueError(
                f"{layer}: {missing[0]} has to be fitted, but the fitter of its method does not return it"
            )
        return found


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


def _seed(seed: int, layer: int) -> int:
    # not their sum, by which the second layer of seed 0 would repeat the first of seed 1
    return int(np.random.SeedSequence((seed, layer)).generate_state(1)[0])
