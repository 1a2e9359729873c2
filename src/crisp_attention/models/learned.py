"""The parameters that a method learns, as parameters of the attention module that uses it."""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.rules.base import Learned
from crisp_attention.models.settings import AttentionLayer, attention_layers, heads_of

MODULE = "crisp_learned"
Missing = tuple[AttentionLayer, dict[str, torch.Tensor]]


class Parameters(nn.Module):
    """Named parameters; calling it gives them by name. They stay in float32 when their model is cast.

    A half precision would swallow small steps. A module that is called, so that what wraps modules, such as
    PEFT's `modules_to_save`, can decide whose parameters are used.
    """

    def __init__(self, initial: Learned) -> None:
        super().__init__()
        self.names = tuple(initial)
        for name, value in initial.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self) -> Learned:
        """The parameters by name."""
        # DataParallel's replicas register none
        return {name: getattr(self, name) for name in self.names}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Parameters":
        # private in torch, read in 2.13: what moves and casts modules, the recurrent ones override it too
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, recurse)


def learned_by(module: nn.Module) -> Learned | None:
    """What the method of this attention module learns, None if nothing."""
    parameters = getattr(module, MODULE, None)
    return None if parameters is None else parameters()


def learning_layers(model: nn.Module) -> list[AttentionLayer]:
    """The layers of a model that have parameters of their method."""
    return [layer for layer in attention_layers(model) if hasattr(layer.module, MODULE)]


def initial_values(module: nn.Module, method: LayerMethod | None) -> dict[str, torch.Tensor]:
    """What the method starts to learn in this module. Raises ValueError if that takes a head count it does not say."""
    # most methods learn nothing, and not every module says how many heads it has
    return method.initial(heads_of(module)) if method and method.initial(1) else {}


def give_parameters(module: nn.Module, method: LayerMethod | None) -> None:
    """Give an attention module the parameters of its method, new unless it has them, and no others."""
    initial = initial_values(module, method)
    present = learned_by(module) or {}
    if set(initial) == set(present):
        return
    take_parameters(module)
    if initial:
        # modules that were quantised for a CPU hold neither parameters nor buffers
        home = next(chain(module.parameters(), module.buffers()), torch.empty(0, device="cpu")).device
        module.add_module(MODULE, Parameters({name: value.to(home) for name, value in initial.items()}))


def take_parameters(module: nn.Module) -> None:
    """Remove the parameters that `give_parameters` gave."""
    if hasattr(module, MODULE):
        delattr(module, MODULE)


def own_parameters(module: nn.Module, adapter: str | None = None) -> nn.Module:
    """The parameters of an attention module that one adapter uses: its own, or those of the base model."""
    parameters = getattr(module, MODULE)
    by_adapter = getattr(parameters, "modules_to_save", None)  # PEFT's wrapper holds a copy for each adapter
    if by_adapter is None:
        return parameters
    return (
        by_adapter[adapter] if adapter is not None and adapter in by_adapter else parameters.original_module
    )


def missing_parameters(methods: Iterable[tuple[AttentionLayer, LayerMethod]]) -> list[Missing]:
    """The layers that do not hold the parameters of their method yet, with initial values.

    Layers that hold them already may have trained them.
    """
    initial = ((layer, initial_values(layer.module, method)) for layer, method in methods)
    return [each for each in initial if set(each[1]) != set(learned_by(each[0].module) or {})]


def read_parameters(
    missing: Iterable[Missing], path: str | Path, **hub: Any
) -> list[tuple[AttentionLayer, Learned]]:
    """What layers have learned, from the checkpoint at `path`.

    Raises ValueError if the checkpoint does not hold all of it.
    """
    missing = list(missing)
    if not missing:
        return []
    found: dict[str, torch.Tensor] = {}
    for file in _weight_files(path, **hub):
        with safe_open(file, framework="pt") as weights:
            found |= {key: weights.get_tensor(key) for key in weights.keys() if f".{MODULE}." in key}  # noqa: SIM118
    return [
        (
            layer,
            {name: _saved(layer.name, name, value, found, path) for name, value in initial.items()},
        )
        for layer, initial in missing
    ]


def fill_parameters(parameters: nn.Module, values: Learned) -> None:
    """Give parameters the values that were saved."""
    with torch.no_grad():
        for name, parameter in parameters.named_parameters():
            parameter.copy_(values[name])


def _saved(
    layer: str, name: str, initial: torch.Tensor, found: Mapping[str, torch.Tensor], path: str | Path
) -> torch.Tensor:
    key = f"{layer}.{MODULE}.{name}"
    saved = _longest_common_ending(key, found)
    if saved is None or found[saved].shape != initial.shape:
        raise ValueError(
            f"{path or 'a model loaded from nowhere'} does not hold {key}, which this model's attention learned: "
            f"load it with crisp.load, or call crisp.restore on a model just loaded from its own checkpoint"
        )
    return found[saved]


def _longest_common_ending(key: str, names: Iterable[str]) -> str | None:
    # transformers saves some models under older names of their parts, which differ in the first words,
    # but not in what the parts are numbered
    def shared(name: str) -> int:
        pairs = zip(reversed(key.split(".")), reversed(name.split(".")), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    def numbers(name: str) -> list[str]:
        return [word for word in name.split(".") if word.isdigit()]

    alike = [name for name in names if numbers(name) == numbers(key) and shared(name) > 1]
    ranked = sorted(alike, key=shared, reverse=True)
    if not ranked or (len(ranked) > 1 and shared(ranked[0]) == shared(ranked[1])):
        return None
    return ranked[0]


def _weight_files(path: str | Path, variant: str | None = None, **hub: Any) -> Iterable[str]:
    if not path:
        return []
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": False}
    single = cached_file(path, _named(SAFE_WEIGHTS_NAME, variant), **quiet, **hub)
    if single is not None:
        return [single]
    index = cached_file(path, _named(SAFE_WEIGHTS_INDEX_NAME, variant), **quiet, **hub)
    if index is None:
        return []
    shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    names = sorted({file for key, file in shards.items() if f".{MODULE}." in key})
    return [file for name in names if (file := cached_file(path, name, **quiet, **hub)) is not None]


def _named(file: str, variant: str | None) -> str:
    stem, ending = file.rsplit(".", 1)
    return f"{stem}.{variant}.{ending}" if variant else file
