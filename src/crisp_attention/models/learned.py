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

from crisp_attention.heads import LayerMethod
from crisp_attention.models.settings import AttentionLayer, heads_of
from crisp_attention.rules.base import Learned

MODULE = "crisp_learned"


class LearnedParameters(nn.ParameterDict):
    """Parameters that stay in float32 when their model is cast: a half precision would swallow small steps."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "LearnedParameters":
        # private in torch, read in 2.13: what moves and casts modules, the recurrent ones override it too
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, recurse)


def learned_by(module: nn.Module) -> Learned | None:
    """What the method of this attention module learns, None if nothing."""
    return getattr(module, MODULE, None)


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
        made = {name: nn.Parameter(value.to(home)) for name, value in initial.items()}
        module.add_module(MODULE, LearnedParameters(made))


def take_parameters(module: nn.Module) -> None:
    """Remove the parameters that `give_parameters` gave."""
    if hasattr(module, MODULE):
        delattr(module, MODULE)


def read_parameters(
    methods: Iterable[tuple[AttentionLayer, LayerMethod]], path: str | Path, **hub: Any
) -> list[tuple[nn.Module, Learned]]:
    """What the methods of these layers have learned, from the checkpoint at `path`, by attention module.

    Layers that hold parameters of their method already, and may have trained them, are left out.
    Raises ValueError if the checkpoint does not hold all of it.
    """
    wanted = [
        (layer, initial)
        for layer, each in methods
        if set(initial := initial_values(layer.module, each)) != set(learned_by(layer.module) or {})
    ]
    if not wanted:
        return []
    found: dict[str, torch.Tensor] = {}
    for file in _weight_files(path, **hub):
        with safe_open(file, framework="pt") as weights:
            found |= {key: weights.get_tensor(key) for key in weights.keys() if f".{MODULE}." in key}  # noqa: SIM118
    return [
        (
            layer.module,
            {name: _saved(layer.name, name, value, found, path) for name, value in initial.items()},
        )
        for layer, initial in wanted
    ]


def fill_parameters(learned: Iterable[tuple[nn.Module, Learned]]) -> None:
    """Give modules that have parameters of their method the values that `read_parameters` found."""
    for module, values in learned:
        with torch.no_grad():
            for name, parameter in (learned_by(module) or {}).items():
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
