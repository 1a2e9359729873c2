"""An adapter's configuration carries the settings of the sparse model that it was trained on.

PEFT saves and loads that configuration without passing the model along, so the model is looked up among
the callers. Saving for a dense model, and loading a configuration without settings, are unchanged.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from itertools import takewhile
from types import FrameType, ModuleType
from typing import Any

from huggingface_hub import hf_hub_download
from torch import nn
from transformers import PreTrainedModel
from wrapt import wrap_function_wrapper

from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.host import host_of
from crisp_attention.models.notice import LIBRARY, is_restoring, notify, restoring
from crisp_attention.models.parameters import MODULE, current, holding
from crisp_attention.models.selection import by_name
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.models.transformers.adapters import (
    adapters_on,
    own_parameters,
    recorded_in,
    saved_modules,
)
from crisp_attention.models.transformers.config_notice import CONFIG_KEY
from crisp_attention.models.transformers.host import attention_layers

# what is set on a base model for a task, and cannot be known from the checkpoint that it came from
TASK = ("id2label", "label2id", "problem_type", "pad_token_id")
Methods = dict[int, LayerMethod]


def install(peft_config: ModuleType) -> None:
    """Let PEFT's configurations carry the settings; called with the module `peft.config` once it is imported."""
    wrap_function_wrapper(peft_config, "PeftConfigMixin.save_pretrained", _save)
    wrap_function_wrapper(peft_config, "PeftConfigMixin.from_pretrained", _load)


def install_loading(peft_model: ModuleType) -> None:
    """The same where only an adapter's weights are loaded; called with the module `peft.peft_model`."""
    wrap_function_wrapper(peft_model, "PeftModel.load_adapter", _load_weights)
    wrap_function_wrapper(peft_model, "load_peft_weights", _rename)


def _save(wrapped: Callable[..., None], config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    owner = next((each for each in _models(_callers(), ("self",)) if hasattr(each, "peft_config")), None)
    root = None if owner is None else _transformers_model(owner)
    sparse = None if root is None else SparseModel.find(root)
    if owner is None or root is None or sparse is None or not hasattr(root.config, CONFIG_KEY):
        return wrapped(*args, **kwargs)
    name = next((name for name, each in adapters_on(owner, root).configs.items() if each is config), None)
    parameters = {layer.name: own_parameters(layer.module, name) for layer in holding(sparse.layers)}
    if any(each is not own_parameters(root.get_submodule(layer)) for layer, each in parameters.items()):
        config.modules_to_save = list(dict.fromkeys([*saved_modules(config), MODULE]))
    different = root.config.to_diff_dict()
    settings = {
        **sparse.record(),
        "learned": {
            layer: {each: value.tolist() for each, value in values().items()}
            for layer, values in parameters.items()
        },
        "task": {key: different[key] for key in TASK if key in different},
    }
    mapping = kwargs.pop("auto_mapping_dict", None) or config.auto_mapping
    mapping = mapping or {"base_model_class": type(root).__name__, "parent_library": type(root).__module__}
    return wrapped(*args, auto_mapping_dict={**mapping, CONFIG_KEY: settings}, **kwargs)


def _load(wrapped: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    config = wrapped(*args, **kwargs)
    if is_restoring():
        return config
    readers = list(takewhile(lambda frame: LIBRARY.search(frame.f_code.co_filename), _callers()))
    _replace_settings(readers, config)
    if (recorded := recorded_in(config)) is None:
        return config
    model = next(_models(readers, ("self", "model")), None)
    if model is not None or not readers:  # else a library reads it before it loads a model
        root = None if model is None else _transformers_model(model)
        if (message := _notice(*recorded, root)) is not None:
            notify(message)
    return config


def _replace_settings(readers: Iterable[FrameType], config: Any) -> None:
    """The adapter whose weights are replaced by those next to `config`; the rest of its configuration stays."""
    for frame in readers:
        name = frame.f_locals.get("adapter_name")
        for model in _models([frame], ("self", "model")):
            own: Any = getattr(model, "peft_config", None)
            if name is not None and own and name in own:
                own[name].auto_mapping = config.auto_mapping


def _load_weights(
    wrapped: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """PEFT reads no configuration for a name in use: the settings next to the weights take the place of its own."""
    given = signature(wrapped).bind(*args, **kwargs).arguments
    known = model.peft_config.get(given["adapter_name"])
    result = wrapped(*args, **kwargs)
    caller = next(frame for frame in _callers() if not frame.f_globals["__name__"].startswith("wrapt"))
    # PEFT has read the configuration before; a Trainer resumes whatever model it was given
    if known is None or LIBRARY.search(caller.f_code.co_filename):
        return result
    hub = {
        name: value
        for name, value in given.get("kwargs", {}).items()
        if name in signature(hf_hub_download).parameters
    }
    try:
        with restoring():
            known.auto_mapping = type(known).from_pretrained(str(given["model_id"]), **hub).auto_mapping
    except (OSError, ValueError):  # weights without a configuration
        return result
    recorded, root = recorded_in(known), _transformers_model(model)
    if recorded is not None and not is_restoring() and (message := _notice(*recorded, root)) is not None:
        notify(message)
    return result


def _rename(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Weights as they are read, what attention learned under the names that it has now."""
    found = wrapped(*args, **kwargs)
    return {current(key) if f".{MODULE}." in key else key: value for key, value in found.items()}


def _notice(methods: Mapping[str, LayerMethod], phase: str, root: PreTrainedModel | None) -> str | None:
    remedy = "crisp_attention.restore(model) makes it what the adapter was trained with, crisp_attention.load(path) "
    remedy += "loads both."
    if root is None:
        return f"This adapter was trained with sparse attention, but a model that it is loaded into is dense. {remedy}"
    try:
        found = attention_layers(root)
        wanted = {by_name(found, name).index: method for name, method in methods.items()}
    except ValueError as error:
        return f"This adapter was trained with sparse attention in a model with other layers: {error}"
    trained = f"This adapter was trained with sparse attention ({_in_words(wanted, phase)})"
    active, active_phase = _active(root)
    if not active:
        return f"{trained}, but the model that it is loaded into is dense. {remedy}"
    if (active, active_phase) != (wanted, phase):
        now = _in_words(active, active_phase)
        return f"{trained}, but the model that it is loaded into has another ({now}). {remedy}"
    return None


def _active(root: PreTrainedModel) -> tuple[Methods, str]:
    try:
        sparse = SparseModel.of(root)
    except ValueError:
        return {}, ""
    methods = sparse.methods
    return {
        layer.index: methods[layer.name] for layer in sparse.layers if layer.name in methods
    }, sparse.phase


def _in_words(methods: Methods, phase: str) -> str:
    layers: dict[str, list[str]] = {}
    for index, method in sorted(methods.items()):
        layers.setdefault(str(method), []).append(str(index))
    words = [f"{spec} in {len(at)} layers: {', '.join(at)}" for spec, at in layers.items()]
    return "; ".join(words if phase == "always" else [*words, f"phase {phase}"])


def _callers() -> Iterator[FrameType]:
    """The frames outside this module, the nearest first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame
        frame = frame.f_back


def _models(frames: Iterable[FrameType], names: tuple[str, ...]) -> Iterator[nn.Module]:
    """The models that functions hold under these names."""
    held = (frame.f_locals.get(name) for frame in frames for name in names)
    return (each for each in held if isinstance(each, nn.Module))


def _transformers_model(model: nn.Module) -> PreTrainedModel | None:
    try:
        _, root = host_of(model)
    except TypeError:
        return None
    return root if isinstance(root, PreTrainedModel) else None
