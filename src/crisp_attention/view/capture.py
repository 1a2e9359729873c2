"""The attention of a model over a text: one forward pass for each method, recorded layer by layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError
from crisp_attention.insight.measuring import Measurement
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.method import Method
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.settings import Observer, Settings

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """One attention layer of a forward pass."""

    number: int
    name: str
    heads: int


@dataclass(frozen=True)
class Seen:
    """One layer with one method, all (H, L, L): dense weights, kept and valid pairs; numbers per head."""

    method: LayerMethod
    weights: np.ndarray
    kept: np.ndarray
    valid: np.ndarray
    sparsity: list[float]
    kept_mass: list[float]


def layers_of(model: PreTrainedModel, batch: Batch) -> list[Layer]:
    """The layers that a forward pass goes through. Raises OptionError if its attention cannot be observed."""
    seen: list[Layer] = []
    length = batch["input_ids"].shape[-1]

    def observe(settings: Settings, method: LayerMethod, found: Observation) -> None:
        rows, heads, *pairs = found.scores.shape
        if rows != 1 or pairs != [length, length]:
            raise OptionError(
                f"{settings.name} attends over {rows} x {' x '.join(map(str, pairs))} positions, "
                f"not over the {length} tokens of the text"
            )
        seen.append(Layer(settings.index, settings.name, heads))

    try:
        _forward(model, batch, observe)
    except OptionError:
        raise
    except Exception as error:  # a model that needs more than a text may fail in any way
        raise OptionError(f"cannot run {type(model).__name__} on a text alone: {error}") from error
    if not seen:
        raise OptionError(f"{type(model).__name__} computes no attention over a text")
    if len({layer.number for layer in seen}) < len(seen):  # one module called again and again, as in ALBERT
        return [Layer(call, layer.name, layer.heads) for call, layer in enumerate(seen)]
    return seen


def capture(
    model: PreTrainedModel, batch: Batch, method: Method | None, layers: list[Layer], held: list[Layer]
) -> list[Seen]:
    """One forward pass with `method`, None for the model as it is; what it did in each layer of `held`.

    Raises TypeError, ValueError or NotImplementedError if the method does not fit the model.
    """
    calls = iter(layers)
    found: list[tuple[LayerMethod, tuple[np.ndarray, np.ndarray, np.ndarray]]] = []
    measured = Measurement()

    def observe(settings: Settings, active: LayerMethod, seen: Observation) -> None:
        layer = next(calls)
        if layer in held:
            found.append((active, _pairs(seen)))
            measured.observe(layer.number, layer.name, active.name, seen)

    _forward(model, batch, observe, method)
    numbers = measured.table().groupby("layer")
    return [
        Seen(
            active,
            *pairs,
            sparsity=numbers.get_group(layer.number)["sparsity"].tolist(),
            kept_mass=numbers.get_group(layer.number)["kept_mass"].tolist(),
        )
        for layer, (active, pairs) in zip(held, found, strict=True)
    ]


def _pairs(seen: Observation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    valid, kept = seen.valid[0], seen.keep[0]
    lowest = torch.finfo(seen.scores.dtype).min
    weights = seen.scores[0].masked_fill(~valid, lowest).softmax(dim=-1).masked_fill(~valid, 0.0)
    if weights.isnan().any():
        raise OptionError("the attention of this model is NaN for this text")
    return weights.numpy(), kept.numpy(), valid.numpy()


def _forward(model: PreTrainedModel, batch: Batch, observe: Observer, method: Method | None = None) -> None:
    with borrowed(model, method=method, observe=observe, evaluate=True):
        model.base_model(**batch)  # without the head, which may need more than a text
