"""Using a model temporarily, and restoring it afterwards."""

import random
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from torch import nn

from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.method import AnyMethod, Method
from crisp_attention.models.apply import activate, deactivate, supported_layers
from crisp_attention.models.host import Host, device_of, host_of
from crisp_attention.models.rollback import all_or_nothing, everything, remember
from crisp_attention.models.selection import select
from crisp_attention.models.settings import Observer, Settings, settings_on
from crisp_attention.models.sparse_model import SparseModel, carrying, check_active

_beginning_or_end = Lock()  # several threads may observe one model


@contextmanager
def borrowed(
    model: nn.Module,
    *,
    method: AnyMethod | None = None,
    observe: Observer | None = None,
    observed: Container[int] | None = None,
    methods: Callable[[LayerMethod | None], LayerMethod | None] | None = None,
    unobserved: bool = False,
    evaluate: bool = False,
    untouched: bool = False,
) -> Iterator[list[Settings]]:
    """Use a model inside the block; afterwards, and after any error, it is restored.

    Parameters
    ----------
    model
        A model, sparse or not, or a wrapper around one.
    method
        The method of its self-attention inside the block; other attention is dense.
    observe
        Called with the settings, the method and the `Observation` of every attention call. Calls of other
        threads count too: those of a model split over devices come from threads of their own. A model that is
        not sparse runs its attention through Crisp, dense, for as long as the block does.
    observed
        The numbers of the layers that are observed; by default all.
    methods
        The method of every layer inside the block, in every phase, from the one that it has; None for dense, by
        Crisp's kernel.
    unobserved
        Observers from outside the block do not see the calls inside it.
    evaluate
        Evaluation mode, without gradients.
    untouched
        The side effects of passes are undone: random number generators, gradients, buffers such as running means, and
        the modes of modules.

    Yields
    ------
    The settings of its layers; none for a dense model that is not observed and given no method.

    Raises
    ------
    TypeError, ValueError
        If Crisp cannot observe the model, or the method does not fit it, as `sparsify` does.
    """
    with ExitStack() as given:
        if untouched:
            given.enter_context(_untouched(model))
        if evaluate:
            given.enter_context(evaluating(model))
        if method is not None:
            given.enter_context(_having(model, method))
        layers: list[Settings] = []
        if observe is not None:
            layers = given.enter_context(_observing(model, observe, observed))
        elif method is not None or methods or unobserved:
            layers = [settings_on(layer) for layer in carrying(*host_of(model))]
        if methods:
            given.enter_context(_each(layers, "method", methods))
            given.enter_context(_each(layers, "phase", lambda _: "always"))
        if unobserved:
            given.enter_context(_each(layers, "observers", lambda _: []))
        yield layers


def inputs(host: Host, root: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as arguments of a forward pass without a loss. Raises TypeError if it is not a mapping."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"expected batches that are mappings of the model's arguments, got {type(batch).__name__}"
        )
    return host.inputs(root, batch)


@contextmanager
def _having(model: nn.Module, method: AnyMethod) -> Iterator[None]:
    host, root = host_of(model)
    chosen = select(host, supported_layers(host, root), method, None, "self")
    put_back = remember(everything(host, root))
    try:
        activate(host, root, chosen, "always")
        yield
    finally:
        put_back()


@contextmanager
def _observing(
    model: nn.Module, observer: Observer, observed: Container[int] | None
) -> Iterator[list[Settings]]:
    host, root = host_of(model)
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

    with _beginning_or_end, all_or_nothing(everything(host, root)):
        found = carrying(host, root)
        if not found:
            dense = select(host, supported_layers(host, root), Method(), None, "all")
            found = list(activate(host, root, dense, "always").layers)
            for layer in found:
                settings_on(layer).only_observed = True
        check_active(host, found)
        layers = [settings_on(layer) for layer in found]
        watched = [settings for settings in layers if observed is None or settings.index in observed]
        for settings in watched:
            settings.observers.append(observe)
    try:
        yield layers
    finally:
        with _beginning_or_end:
            for settings in watched:
                settings.observers.remove(observe)
            sparse = SparseModel.find(root)
            if sparse and all(each.only_observed and not each.observers for each in sparse.settings):
                deactivate(sparse)


@contextmanager
def _each(layers: list[Settings], name: str, value: Callable[[Any], Any]) -> Iterator[None]:
    """Every layer's setting `name` has another value inside the block, which depends on its own."""
    before = [getattr(settings, name) for settings in layers]
    for settings, each in zip(layers, before, strict=True):
        setattr(settings, name, value(each))
    try:
        yield
    finally:
        for settings, each in zip(layers, before, strict=True):
            setattr(settings, name, each)


@contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; its modules' modes are then what they were."""
    with _same_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    python, numpy = random.getstate(), np.random.get_state()
    device = device_of(model)
    forked = {} if device.type == "cpu" else {"device_type": device.type}
    try:
        with _same_modes(model), torch.random.fork_rng(devices=[device] if forked else [], **forked):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
