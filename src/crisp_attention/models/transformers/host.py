"""The host of transformers: models that look their attention up in its interface, and what their checkpoints hold."""

import inspect
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Parameter, Shape
from crisp_attention.models.host import (
    CRISP,
    AttentionLayer,
    Host,
    Missing,
    Traits,
    device_of,
    outermost,
    register,
)
from crisp_attention.models.notice import restoring
from crisp_attention.models.parameters import MODULE, Values, current, not_held
from crisp_attention.models.transformers import attention, checkpoints, own
from crisp_attention.models.transformers.adapters import adapters_on, forget, own_parameters
from crisp_attention.models.transformers.calling import dispatching
from crisp_attention.models.transformers.config_notice import CONFIG_KEY
from crisp_attention.models.transformers.configs import (
    Copies,
    check_savable,
    config_of,
    erase_records,
    forget_sparsity,
    give_back_originals,
    original_implementation,
    recorded,
    replace_by_copies,
)


def read_parameters(
    missing: Sequence[Missing], path: str | Path, **hub: Any
) -> list[tuple[AttentionLayer, Values]]:
    """What layers have learned, from the checkpoint at `path`.

    Raises CheckpointError if the checkpoint does not hold all of it.
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
            raise not_held(path, key, each.value, None if saved is None else found[saved])
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


CROSS = re.compile(r"cross|encoder_?attn|enc_?dec_?att", re.IGNORECASE)
HEADS = ("num_attention_heads", "num_heads", "n_heads")
WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim")
# where modules keep the share of weights that they drop in training, as a number or as a module with a `p`
DROPOUTS = (
    "attention_dropout",
    "attn_dropout",
    "attn_drop",
    "dropout_prob",
    "dropout_p",
    "dropout",
)


class Transformers(Host):
    """Models of transformers. A module counts if the code of its class looks its function up in the interface."""

    name: ClassVar[str] = "transformers"

    def roots(self, model: nn.Module) -> list[nn.Module]:
        return outermost(model, PreTrainedModel)

    def layers(self, root: nn.Module) -> list[AttentionLayer]:
        return attention_layers(root)

    def shape(self, module: nn.Module) -> Shape:
        for holder, names in ((module, HEADS), (config_of(module), HEADS[:1])):
            for name in names:
                if isinstance(heads := getattr(holder, name, None), int):
                    groups = heads // getattr(module, "num_key_value_groups", 1)
                    return Shape(heads, groups, _width(module, heads))
        raise ValueError(f"{type(module).__name__} does not say how many heads it has")

    def traits(self, module: nn.Module, training: bool) -> Traits:
        return Traits(
            causal=bool(getattr(module, "is_causal", False)),
            softcap=getattr(module, "attn_logit_softcapping", None),
            dropout=_dropout(module) if training else 0.0,
            sinks=getattr(module, "sinks", None) is not None,
        )

    def held(self, module: nn.Module) -> Iterable[object]:
        config = config_of(module)
        return () if config is None else (config,)

    def why_not(self, root: Any) -> str:
        return (
            f"{type(root).__name__} (model type {root.config.model_type!r}) does not compute its attention through "
            f"transformers' attention interface, nor by torch's scaled_dot_product_attention as it was loaded "
            f"(attn_implementation={root.config._attn_implementation!r}), so Crisp cannot make it sparse"
        )

    def running(self, module: nn.Module) -> str:
        return str(getattr(config_of(module), "_attn_implementation", None))

    def own(self, root: Any, module: nn.Module, taken: Copies) -> str:
        return original_implementation(root, module, taken)

    def own_runs(self, module: nn.Module, original: str) -> str:
        traits = self.traits(module, training=False)
        return own.implementation(type(module), original, traits.softcap is not None or traits.sinks)

    def take_over(self, root: nn.Module) -> Copies:
        return replace_by_copies(root)

    def switch(self, root: Any) -> None:
        root.set_attn_implementation(CRISP)

    def give_back(self, root: nn.Module, taken: Copies) -> None:
        give_back_originals(root, taken)

    def check_savable(self, root: Any) -> None:
        check_savable(root)

    def write(self, root: Any, record: dict[str, Any]) -> None:
        with restoring():
            setattr(root.config, CONFIG_KEY, record)

    def read(self, model: nn.Module, root: Any) -> tuple[dict[str, LayerMethod], str] | None:
        return adapters_on(model, root).recorded or recorded(root.config)

    def erase(self, root: nn.Module) -> None:
        erase_records(root)

    def forget(self, model: nn.Module, root: Any) -> None:
        forget_sparsity(root)
        forget(adapters_on(model, root))

    def adopt(self, model: nn.Module, root: nn.Module, layers: Sequence[AttentionLayer]) -> None:
        adapters_on(model, root).train(layers)

    def load(self, path: str | Path, given: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
        return checkpoints.read(path, **given)

    def saved(
        self, model: nn.Module, root: Any, missing: Sequence[Missing], place: Mapping[str, Any]
    ) -> Callable[[], None]:
        adapters = adapters_on(model, root)
        beside_adapters = list(adapters.learned(missing, self.layers(root)))
        where = place or {"path": root.name_or_path or ""}
        in_checkpoint = [] if adapters.recorded else read_parameters(missing, **where)

        def fill() -> None:
            for layer, values in in_checkpoint:
                own_parameters(layer.module).fill(values)
            adapters.train([layer for layer, _ in missing], listed=True)
            for layer, adapter, values in beside_adapters:
                own_parameters(layer.module, adapter).fill(values)

        return fill

    def inputs(self, root: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        # an encoder-decoder may make its decoder's input from the labels
        drops = (
            not root.config.is_encoder_decoder or "labels" not in inspect.signature(root.forward).parameters
        )
        device = device_of(root)
        return {
            name: each.to(device) if isinstance(each, Tensor) else each
            for name, each in batch.items()
            if not (drops and name == "labels")
        }


def attention_layers(root: nn.Module) -> list[AttentionLayer]:
    """The attention modules of a transformers model."""
    found = [(name, module) for name, module in root.named_modules() if _dispatches(module)]
    return [
        AttentionLayer(i, name, module, _is_cross(name, module)) for i, (name, module) in enumerate(found)
    ]


def _dispatches(module: nn.Module) -> bool:
    return not isinstance(module, PreTrainedModel) and bool(dispatching(cast(Hashable, type(module))))


def _is_cross(name: str, module: nn.Module) -> bool:
    if getattr(module, "is_cross_attention", False):
        return True
    return bool(CROSS.search(type(module).__name__) or CROSS.search(".".join(name.split(".")[-2:])))


def _width(module: nn.Module, heads: int) -> int:
    for name in WIDTHS:
        if isinstance(size := getattr(module, name, None), int):
            return size
    return getattr(config_of(module), "hidden_size", 64 * heads) // heads


def _dropout(module: nn.Module) -> float:
    holders = [(module, name) for name in DROPOUTS] + [(config_of(module), DROPOUTS[0])]
    for holder, name in holders:
        found = getattr(holder, name, None)
        if isinstance(share := getattr(found, "p", found), (int, float)):
            return float(share)
    return 0.0


attention.register()
register(Transformers())
