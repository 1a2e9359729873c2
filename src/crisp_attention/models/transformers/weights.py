"""Reading what attention layers have learned from a checkpoint of safetensors."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from crisp_attention.methods.part import Parameter
from crisp_attention.models.host import AttentionLayer, Missing
from crisp_attention.models.parameters import MODULE, Values, current


def read_parameters(
    missing: Sequence[Missing], path: str | Path, **hub: Any
) -> list[tuple[AttentionLayer, Values]]:
    """What layers have learned, from the checkpoint at `path`.

    Raises ValueError if the checkpoint does not hold all of it.
    """
    if not missing:
        return []
    found: dict[str, torch.Tensor] = {}
    for file in _weight_files(path, **hub):
        with safe_open(file, framework="pt") as weights:
            keys = [key for key in weights.keys() if f".{MODULE}." in key]  # noqa: SIM118
            found |= {current(key): weights.get_tensor(key) for key in keys}
    return [(layer, dict(_of_layer(layer.name, wanted, found, path))) for layer, wanted in missing]


def _of_layer(
    layer: str, wanted: Mapping[str, Parameter], found: Values, path: str | Path
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, each in wanted.items():
        key = f"{layer}.{MODULE}.{name}"
        saved = _longest_common_ending(key, found)
        if saved is None and not each.trained:
            continue  # saved before it was fitted
        if saved is None or found[saved].shape != each.value.shape:
            raise ValueError(
                f"{path or 'a model without a checkpoint'} does not hold {key}, which this model's attention learned: "
                f"load it with crisp.load, or call crisp.restore on a model just loaded from its own checkpoint"
            )
        yield name, found[saved]


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
