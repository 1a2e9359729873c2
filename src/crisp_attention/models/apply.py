"""Making a model sparse, and dense again."""

from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from crisp_attention.methods import AnyMethod, Method
from crisp_attention.models import record
from crisp_attention.models.selection import Choice, Which, select
from crisp_attention.models.settings import (
    ATTRIBUTE,
    PHASES,
    AttentionLayer,
    Phase,
    Settings,
    attention_layers,
    settings_of,
)
from crisp_attention.models.transformers import IMPLEMENTATION

Model = TypeVar("Model", bound=nn.Module)
# On the outermost model: its configurations and the implementation each had. The objects
# themselves, so that a deep copy or a pickle of the model keeps the two together.
ORIGINALS = "_crisp_originals"


def sparsify(
    model: Model,
    method: AnyMethod | None = None,
    *,
    layers: Choice | None = None,
    phase: Phase = "always",
    attention: Which = "self",
) -> Model:
    """Make the attention of a transformers model sparse, in place, and return the model.

    `layers` chooses attention modules by index (`[2, 3]`), range (`["2-5"]`) or name pattern
    (`["encoder.*"]`), or gives each its own method (`{"*": TopK(0.8), "0": Dense()}`: an index
    beats a pattern); other layers stay as the model had them. `phase` says when the method is
    active, `attention` which modules count. Doing it again replaces what was set before. Raises
    TypeError or ValueError if the model does not use transformers' attention interface, a layer
    does not exist, or a method does not fit.
    """
    root = outermost(model)
    found = _supported_layers(root)
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
    activate(root, select(found, method, layers, attention), phase)
    return model


def densify(model: Model) -> Model:
    """Undo `sparsify`, in place: the model is exactly what it was. Raises ValueError if it is not sparse."""
    root = outermost(model)
    _require_sparse(root)
    for layer, _ in settings_of(root):
        delattr(layer.module, ATTRIBUTE)
    for config, original in getattr(root, ORIGINALS):
        config._attn_implementation_internal = original
    delattr(root, ORIGINALS)
    record.erase(root.config)
    return model


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Set the target sparsity of every layer whose method has one. Raises ValueError if none has."""
    root = outermost(model)
    _require_sparse(root)
    sparse = [(s, s.method) for _, s in settings_of(root) if s.method and s.method.sparsity is not None]
    if not sparse:
        raise ValueError("no layer has a method with a sparsity to set")
    changed = [method.with_sparsity(sparsity) for _, method in sparse]
    for (settings, _), method in zip(sparse, changed, strict=True):
        settings.method = method
    record.write(root)


def get_sparsity(model: nn.Module) -> dict[str, float]:
    """The target sparsity by layer name, of the layers whose method has one."""
    settings = [each for _, each in settings_of(outermost(model))]
    return {s.name: s.method.sparsity for s in settings if s.method and s.method.sparsity is not None}


def outermost(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, found inside wrappers such as PEFT's or torch.compile's."""
    outer: list[PreTrainedModel] = []
    stack: list[nn.Module] = [model] if isinstance(model, nn.Module) else []
    while stack:
        module = stack.pop()
        if isinstance(module, PreTrainedModel):
            outer.append(module)
        else:
            stack.extend(module.children())
    if len(outer) != 1:
        raise TypeError(
            f"expected one transformers PreTrainedModel, or a wrapper around one; "
            f"{type(model).__name__} holds {len(outer)}"
        )
    return outer[0]


def activate(root: PreTrainedModel, chosen: Mapping[int, Method], phase: str) -> None:
    """Give every attention module its settings and switch the model over to Crisp's functions."""
    found = attention_layers(root)
    originals = _originals(root)
    root.set_attn_implementation(IMPLEMENTATION)
    configs = {layer.index: _config(layer.module) for layer in found}
    stuck = [
        layer
        for layer in found
        if getattr(configs[layer.index], "_attn_implementation", None) != IMPLEMENTATION
    ]
    if stuck:
        for config, original in originals:
            config._attn_implementation_internal = original
        raise _unsupported(root, f"{stuck[0].name} did not switch its implementation")
    for module in root.modules():  # a part that was made sparse before belongs to the whole now
        if hasattr(module, ORIGINALS):
            delattr(module, ORIGINALS)
    for config, _ in originals:
        record.erase(config)
    setattr(root, ORIGINALS, originals)
    before = {id(config): original for config, original in originals}
    for layer in found:
        previous: Settings | None = getattr(layer.module, ATTRIBUTE, None)
        settings = Settings(
            index=layer.index,
            name=layer.name,
            cross=layer.cross,
            original=before[id(configs[layer.index])],
            method=chosen.get(layer.index),
            phase=phase,
            observers=previous.observers if previous else [],
        )
        setattr(layer.module, ATTRIBUTE, settings)
    record.write(root)


def _originals(root: PreTrainedModel) -> list[tuple[PreTrainedConfig, str]]:
    earlier = [pair for module in root.modules() for pair in getattr(module, ORIGINALS, [])]
    known = {id(config): original for config, original in earlier}
    configs: dict[int, PreTrainedConfig] = {}
    stack = [config for module in root.modules() if (config := _config(module)) is not None]
    while stack:
        config = stack.pop()
        if id(config) not in configs:
            configs[id(config)] = config
            stack.extend(
                sub for name in config.sub_configs if (sub := getattr(config, name, None)) is not None
            )
    return [(config, known.get(key, config._attn_implementation)) for key, config in configs.items()]


def _config(module: nn.Module) -> PreTrainedConfig | None:
    config = getattr(module, "config", None)
    return config if isinstance(config, PreTrainedConfig) else None


def _supported_layers(root: PreTrainedModel) -> list[AttentionLayer]:
    found = attention_layers(root)
    if not found:
        raise _unsupported(root, "none of its modules does")
    return found


def _unsupported(root: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(
        f"{type(root).__name__} (model type {root.config.model_type!r}) does not compute its attention through "
        f"transformers' attention interface, so Crisp cannot make it sparse: {reason}"
    )


def _require_sparse(root: PreTrainedModel) -> None:
    if not hasattr(root, ORIGINALS):
        raise ValueError(
            f"this {type(root).__name__} is not sparse, or only as part of a larger sparse model: "
            f"call crisp.sparsify on it first"
        )
