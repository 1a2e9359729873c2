"""Watching every attention call of a model while a block runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from crisp_attention.heads import LayerMethod
from crisp_attention.kernels.reference import Observation
from crisp_attention.models.apply import check_active, densify, outermost, sparsify
from crisp_attention.models.settings import Settings, settings_of
from crisp_attention.rules import Dense


@contextmanager
def observing(
    model: nn.Module, observer: Callable[[Settings, LayerMethod, Observation], None]
) -> Iterator[list[Settings]]:
    """Call `observer` with every attention call inside the block; yields the settings of all layers.

    A model that is not sparse runs its attention through Crisp, dense, for as long as the block does.
    Raises ValueError for a model that Crisp cannot look into.
    """
    root = outermost(model)
    dense = not settings_of(root)
    if dense:
        sparsify(root, Dense(), attention="all")
    check_active(root)
    layers = [settings for _, settings in settings_of(root)]
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
        observer(settings, method, seen)

    for settings in layers:
        settings.observers.append(observe)
    try:
        yield layers
    finally:
        for settings in layers:
            settings.observers.remove(observe)
        if dense and all(now is then for (_, now), then in zip(settings_of(root), layers, strict=False)):
            densify(root)  # unless it was made sparse inside the block
