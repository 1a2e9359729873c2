"""`crisp.measuring(model)`: what the sparse model really does while the block runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from crisp_attention.heads import LayerMethod, PerHead
from crisp_attention.kernels.reference import Observation
from crisp_attention.measure import Measurement
from crisp_attention.models.apply import check_active, densify, outermost, sparsify
from crisp_attention.models.settings import Settings, settings_of
from crisp_attention.rules import Dense


@contextmanager
def measuring(model: nn.Module) -> Iterator[Measurement]:
    """Measure every attention call of a model inside the block, per layer and head.

    Yields a `Measurement`; its `table()` works during and after the block. Layers that are dense,
    or not in their phase, appear as `dense`; a model that is not sparse is measured dense. Costs
    nothing when not active. Raises ValueError for a model that Crisp cannot look into.
    """
    root = outermost(model)
    dense = not settings_of(root)
    if dense:
        sparsify(root, Dense(), attention="all")
    check_active(root)
    layers = settings_of(root)
    measurement = Measurement()
    real: Tensor | None = None

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        # a cross-attention mask says nothing of the queries: they are those of the self-attention before
        nonlocal real
        if not settings.cross:
            real = seen.queries
        else:
            if real is None or real.shape[-1] != seen.valid.shape[-2]:
                real = torch.ones_like(seen.valid[..., 0])
            seen = replace(seen, queries=real.to(seen.valid.device))
        names = [m.name for m in method.methods] if isinstance(method, PerHead) else method.name
        measurement.observe(settings.index, settings.name, names, seen)

    for _, settings in layers:
        settings.observers.append(observe)
    try:
        yield measurement
    finally:
        for _, settings in layers:
            settings.observers.remove(observe)
        if dense:
            densify(root)
