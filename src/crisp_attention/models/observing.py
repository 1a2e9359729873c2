"""Watching every attention call of a model while a block runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock, local

import torch
from torch import nn

from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.rules import Dense
from crisp_attention.models.apply import activate, check_active, deactivate, outermost, supported_layers
from crisp_attention.models.rollback import all_or_nothing
from crisp_attention.models.selection import select
from crisp_attention.models.settings import Settings, settings_of

_beginning_or_end = Lock()  # several threads may watch one model


@contextmanager
def observing(
    model: nn.Module, observer: Callable[[Settings, LayerMethod, Observation], None]
) -> Iterator[list[Settings]]:
    """Call `observer` with every attention call inside the block; yields the settings of all layers.

    Calls of other threads count too: those of a model split over devices come from threads of their own. A
    model that is not sparse runs its attention through Crisp, dense, for as long as the block does.
    Raises ValueError for a model that Crisp cannot look into.
    """
    root = outermost(model)
    pass_of_this_thread = local()

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        # a cross-attention mask says nothing of the queries: they are those of the self-attention before
        if not settings.cross:
            pass_of_this_thread.queries = seen.queries
        else:
            real = getattr(pass_of_this_thread, "queries", None)
            if real is None or real.shape[-1] != seen.valid.shape[-2]:
                real = torch.ones_like(seen.valid[..., 0])
            seen = replace(seen, queries=real.to(seen.valid.device))
        observer(settings, method, seen)

    with _beginning_or_end, all_or_nothing(root):
        if not settings_of(root):
            activate(root, select(supported_layers(root), Dense(), None, "all"), "always")
            for _, settings in settings_of(root):
                settings.only_observed = True
        check_active(root)
        layers = [settings for _, settings in settings_of(root)]
        for settings in layers:
            settings.observers.append(observe)
    try:
        yield layers
    finally:
        with _beginning_or_end:
            for settings in layers:
                settings.observers.remove(observe)
            now = [settings for _, settings in settings_of(root)]
            if now and all(each.only_observed and not each.observers for each in now):
                deactivate(root)
