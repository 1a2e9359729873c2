"""The parameters that a method has, as parameters of the attention module that uses it."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Parameter
from crisp_attention.models.settings import AttentionLayer, attention_layers, shape_of

MODULE = "crisp_learned"
Values = Mapping[str, torch.Tensor]
Missing = tuple[AttentionLayer, dict[str, Parameter]]


class Parameters(nn.Module):
    """A layer's parameters of its method; calling it gives those that it has, by name, such as `rule.alpha`.

    A module that is called, so that what wraps modules, such as PEFT's `modules_to_save`, can decide whose
    parameters are used. Fitted ones are buffers, which exist once they were fitted or loaded.
    """

    def __init__(self, wanted: Mapping[str, Parameter], kept: Values | None = None) -> None:
        super().__init__()
        self.kinds = kinds(wanted)
        for name, each in wanted.items():
            part, own = name.split(".", 1)
            if not hasattr(self, part):
                self.add_module(part, _OfPart())
            if each.trained:
                value = (kept or {}).get(name, each.value)
                value = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
                getattr(self, part).register_parameter(own, value)
            else:
                getattr(self, part).register_buffer(own, (kept or {}).get(name))

    def forward(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""
        # DataParallel's replicas register none
        found = (
            (name, getattr(getattr(self, name.split(".", 1)[0]), name.split(".", 1)[1]))
            for name in self.kinds
        )
        return {name: value for name, value in found if value is not None}

    def fill(self, values: Values) -> None:
        """Give parameters the values that were saved or fitted."""
        with torch.no_grad():
            for name, value in values.items():
                part, own = name.split(".", 1)
                holder, (_, dtype, trained) = getattr(self, part), self.kinds[name]
                if trained:
                    getattr(holder, own).copy_(value)
                else:
                    home = next(self.parameters(), value).device
                    setattr(holder, own, value.detach().to(home, dtype, copy=True))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[current(key)] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *more)


class _OfPart(nn.Module):
    """The parameters of one part, which stay in float32 when their model is cast: a half would swallow small steps."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "_OfPart":
        # private in torch, read in 2.13: what moves and casts modules, the recurrent ones override it too
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        for name, value in self._buffers.items():
            if value is None and prefix + name in state_dict:  # there is nothing yet that could take a copy
                self._buffers[name] = state_dict[prefix + name].detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *more)


def kinds(wanted: Mapping[str, Parameter]) -> dict[str, tuple[torch.Size, torch.dtype, bool]]:
    """Shape, dtype and whether it is trained, of each parameter."""
    return {name: (each.value.shape, each.value.dtype, each.trained) for name, each in wanted.items()}


def current(key: str) -> str:
    """The name of a saved parameter, also as it was saved while only rules had some: `crisp_learned.alpha`."""
    layer, _, name = key.rpartition(f"{MODULE}.")
    return key if "." in name else f"{layer}{MODULE}.rule.{name}"


def parameters_in(module: nn.Module) -> Values:
    """The parameters that this attention module holds for its method, by name."""
    parameters = getattr(module, MODULE, None)
    return {} if parameters is None else parameters()


def learning_layers(model: nn.Module) -> list[AttentionLayer]:
    """The layers of a model that have parameters of their method."""
    return [layer for layer in attention_layers(model) if hasattr(layer.module, MODULE)]


def wanted_by(module: nn.Module, method: LayerMethod | None) -> dict[str, Parameter]:
    """The parameters that a method has in this module. Raises ValueError if that takes a shape it does not say."""
    # most methods have none, and not every module says how many heads it has
    return method.parameters(shape_of(module)) if method and method.has_parameters else {}


def give_parameters(module: nn.Module, method: LayerMethod | None) -> None:
    """Give an attention module the parameters of its method, new unless it has them, and no others."""
    wanted = wanted_by(module, method)
    before = own_parameters(module).kinds if hasattr(module, MODULE) else {}
    if before == kinds(wanted):
        return
    kept: Values = {}
    if isinstance(getattr(module, MODULE, None), Parameters):  # and not one for each adapter
        kept = {n: v for n, v in parameters_in(module).items() if before[n] == kinds(wanted).get(n)}
    take_parameters(module)
    if wanted:
        # modules that were quantised for a CPU hold neither parameters nor buffers
        home = next(chain(module.parameters(), module.buffers()), torch.empty(0, device="cpu")).device
        here = {name: replace(each, value=each.value.to(home)) for name, each in wanted.items()}
        module.add_module(MODULE, Parameters(here, kept))


def take_parameters(module: nn.Module) -> None:
    """Remove the parameters that `give_parameters` gave."""
    if hasattr(module, MODULE):
        delattr(module, MODULE)


def own_parameters(module: nn.Module, adapter: str | None = None) -> Parameters:
    """The parameters of an attention module that one adapter uses: its own, or those of the base model."""
    parameters = getattr(module, MODULE)
    by_adapter = getattr(parameters, "modules_to_save", None)  # PEFT's wrapper holds a copy for each adapter
    if by_adapter is None:
        return parameters
    return (
        by_adapter[adapter] if adapter is not None and adapter in by_adapter else parameters.original_module
    )


def missing_parameters(methods: Iterable[tuple[AttentionLayer, LayerMethod]]) -> list[Missing]:
    """The layers that do not hold the parameters of their method yet, and those parameters.

    Layers that hold them already may have trained them.
    """
    found = []
    for layer, method in methods:
        wanted, present = wanted_by(layer.module, method), parameters_in(layer.module)
        if {name: each.value.shape for name, each in wanted.items()} != {
            n: v.shape for n, v in present.items()
        }:
            found.append((layer, wanted))
    return found


def read_parameters(
    missing: Iterable[Missing], path: str | Path, **hub: Any
) -> list[tuple[AttentionLayer, Values]]:
    """What layers have learned, from the checkpoint at `path`.

    Raises ValueError if the checkpoint does not hold all of it.
    """
    missing = list(missing)
    if not missing:
        return []
    found: dict[str, torch.Tensor] = {}
    for file in _weight_files(path, **hub):
        with safe_open(file, framework="pt") as weights:
            keys = [key for key in weights.keys() if f".{MODULE}." in key]  # noqa: SIM118
            found |= {current(key): weights.get_tensor(key) for key in keys}
    return [
        (
            layer,
            {
                n: v
                for n, each in wanted.items()
                if (v := _saved(layer.name, n, each, found, path)) is not None
            },
        )
        for layer, wanted in missing
    ]


def _saved(layer: str, name: str, wanted: Parameter, found: Values, path: str | Path) -> torch.Tensor | None:
    key = f"{layer}.{MODULE}.{name}"
    saved = _longest_common_ending(key, found)
    if saved is None and not wanted.trained:
        return None  # saved before it was fitted
    if saved is None or found[saved].shape != wanted.value.shape:
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

    alike = [name for name in names if numbers(name) == numbers(key) and shared(name) > 2]
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
