"""What the layers of a sparse model see where the layouts that are to be fitted hide nothing, one layer at a time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.layouts import Full
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from crisp_attention.models.borrowing import borrowed, inputs
from crisp_attention.models.host import AttentionLayer, host_of
from crisp_attention.models.settings import Settings


def show(
    model: nn.Module,
    layer: AttentionLayer,
    batches: Iterable[Mapping[str, Any]],
    see: Callable[[Observation], None],
    tokens: int,
) -> int:
    """Let `see` have the calls of a layer in batches of at least `tokens` tokens, or all; the number of batches.

    The model runs with its rules, but without layouts that are to be fitted, in evaluation mode, and is then what it
    was. Raises ValueError if there is no batch.
    """
    host, root = host_of(model)
    number = seen = 0

    def observe(settings: Settings, method: LayerMethod, found: Observation) -> None:
        nonlocal seen
        if settings.index == layer.index:
            seen += found.rows.query.shape[0] * found.rows.query.shape[2]
            see(found)

    # which queries of cross-attention are real is seen in the layer before it
    observed = None if layer.cross else {layer.index}
    with borrowed(
        model,
        observe=observe,
        observed=observed,
        methods=_without_fitted,
        evaluate=True,
        untouched=True,
    ):
        for batch in batches:
            model(**inputs(host, root, batch))
            number += 1
            if seen >= tokens:
                break
    if not number:
        raise ValueError("there was no batch")
    return number


def _without_fitted(method: LayerMethod | None) -> LayerMethod | None:
    """A method without a layout that has parameters to be fitted: such a layout shows every pair."""
    if isinstance(method, PerHead):
        return PerHead(tuple(_alone(each) for each in method.methods))
    return method and _alone(method)


def _alone(method: Method) -> Method:
    held = method.layout.parameters(Shape(1, 1, 1)).values()
    return method if all(each.trained for each in held) else replace(method, layout=Full())
