"""Making a model sparse, and dense again."""

from collections.abc import Mapping
from typing import TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.models import record
from crisp_attention.models.adapters import adapters_on, forget
from crisp_attention.models.configs import (
    IMPLEMENTATION,
    ORIGINALS,
    check_savable,
    config_of,
    forget_sparsity,
    give_back_configs,
    original_implementation,
    take_configs,
)
from crisp_attention.models.learned import give_parameters, learning_layers, take_parameters
from crisp_attention.models.rollback import all_or_nothing
from crisp_attention.models.selection import Choice, ForLayer, Heads, Which, select
from crisp_attention.models.settings import (
    ATTRIBUTE,
    PHASES,
    AttentionLayer,
    Phase,
    Settings,
    attention_layers,
    settings_of,
)
from crisp_attention.models.transformers import note_cache

Model = TypeVar("Model", bound=nn.Module)


def sparsify(
    model: Model,
    method: ForLayer | Budgets | None = None,
    *,
    layers: Choice | None = None,
    heads: Heads | None = None,
    phase: Phase = "always",
    attention: Which = "self",
    backend: str = AUTO,
) -> Model:
    """Make the attention of a transformers model sparse, in place, and return the model.

    `layers` chooses attention modules by index (`[2, 3]`), range (`["2-5"]`) or name pattern
    (`["encoder.*"]`), or gives each its own method (`{"*": TopK(0.8), "0": Dense()}`: an index beats a
    pattern); other layers stay as the model had them. `heads` gives each head its own (`{"0-3":
    TopK(0.9), "*": TopK(0.5)}`; heads without one are dense), in every chosen layer; such a mapping can
    also stand for a method in `layers`. Or `method` is what `crisp.budgets` read. `phase` says when the
    method is active, `attention` which modules count. `backend` names the kernel that computes it, by
    default the fastest that can (`crisp.explain` says which); it belongs to the machine and is not saved
    with the model. Doing it again replaces what was set before; what a layer has learned stays as long as
    its method learns it. On a PEFT model it is trained and saved with the adapters. Call it on the model
    that you save: a part's settings are not in the whole's configuration. Raises TypeError or ValueError
    if the model does not use transformers' attention interface, a layer or head does not exist, a method
    does not fit, or the sparse model could not be saved; after an error the model is what it was.
    """
    if heads is not None:
        if method is not None or isinstance(layers, Mapping):
            raise TypeError("give either heads={key: method}, or a method, or layers={key: method}")
        method = heads
    root = outermost(model)
    found = supported_layers(root)
    check_backend(backend)
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
    chosen = select(found, method, layers, attention)
    check_savable(root)
    with all_or_nothing(root):
        activate(root, chosen, phase, backend)
        adapters_on(model, root).train(learning_layers(root))
        record.write(root)
    return model


def densify(model: Model) -> Model:
    """Undo `sparsify`, in place: the model is exactly what it was, and dense. Raises ValueError if it is not sparse.

    Settings that a checkpoint or an adapter brought along are gone too: the model is saved dense.
    """
    root = sparse_root(model)
    with all_or_nothing(root):
        deactivate(root)
        forget_sparsity(root)
        forget(adapters_on(model, root))
    return model


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Set the target sparsity of every layer whose method has one.

    Raises ValueError if none has, if the heads of a layer have sparsities of their own, or for a number outside
    [0, 1), and TypeError for what is no number.
    """
    root = sparse_root(model)
    sparse = _having_sparsity(root)
    if not sparse:
        raise ValueError("no layer has a method with a sparsity to set")
    changed = [method.with_sparsity(sparsity) for _, method in sparse]
    with all_or_nothing(root):
        for (settings, _), method in zip(sparse, changed, strict=True):
            settings.method = method
        record.write(root)


def get_sparsity(model: nn.Module) -> dict[str, float]:
    """The target sparsity by layer name, of the layers whose method has one.

    Raises ValueError if the heads of a layer have sparsities of their own.
    """
    sparse = _having_sparsity(sparse_root(model))
    return {s.name: method.sparsity for s, method in sparse if method.sparsity is not None}


def _having_sparsity(root: PreTrainedModel) -> list[tuple[Settings, LayerMethod]]:
    found = [(each, each.method) for _, each in settings_of(root) if each.method is not None]
    for settings, method in found:
        if (
            isinstance(method, PerHead)
            and method.sparsity is None
            and any(m.sparsity for m in method.methods)
        ):
            raise ValueError(f"the heads of {settings.name} have sparsities of their own, not one to set")
    return [(settings, method) for settings, method in found if method.sparsity is not None]


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


def activate(
    root: PreTrainedModel, chosen: Mapping[int, LayerMethod], phase: str, backend: str = AUTO
) -> None:
    """Give every attention module its settings and switch the model over to Crisp's functions.

    What is saved with the model stays as it is. Raises ValueError, and changes nothing, if `root` is part of
    a sparse model, or a module does not switch.
    """
    with all_or_nothing(root):
        found = attention_layers(root)
        before = {layer.index: settings for layer, settings in settings_of(root)}
        for part in list(root.modules()):
            if part is not root and hasattr(part, ORIGINALS):
                deactivate(cast(PreTrainedModel, part))
        if not hasattr(root, ORIGINALS):
            if settings_of(root):
                raise ValueError(
                    f"this {type(root).__name__} is part of a larger sparse model: choose layers=[...] there"
                )
            take_configs(root)
        for layer in found:
            settings = Settings(
                index=layer.index,
                name=layer.name,
                cross=layer.cross,
                original=original_implementation(root, layer.module),
                method=chosen.get(layer.index),
                phase=phase,
                backend=backend,
            )
            if old := before.get(layer.index):
                settings.observers = old.observers
                _unfollow_cache(old)
            setattr(layer.module, ATTRIBUTE, settings)
            give_parameters(layer.module, settings.method)
            _follow_cache(layer.module, settings)
        root.set_attn_implementation(IMPLEMENTATION)  # last: another thread may be running the model
        if stuck := [layer.name for layer in found if _implementation(layer) != IMPLEMENTATION]:
            raise _unsupported(root, f"{stuck[0]} did not switch its implementation")


def deactivate(root: PreTrainedModel) -> None:
    """Undo `activate`."""
    with all_or_nothing(root):
        give_back_configs(root)
        for layer, settings in settings_of(root):
            delattr(layer.module, ATTRIBUTE)
            take_parameters(layer.module)
            _unfollow_cache(settings)


def _follow_cache(module: nn.Module, settings: Settings) -> None:
    if settings.method and settings.method.block_size and not settings.cross:
        settings.hook = module.register_forward_pre_hook(note_cache, with_kwargs=True)


def _unfollow_cache(settings: Settings) -> None:
    if settings.hook is not None:
        settings.hook.remove()
        settings.hook = None


def _implementation(layer: AttentionLayer) -> str | None:
    return getattr(config_of(layer.module), "_attn_implementation", None)


def supported_layers(root: PreTrainedModel) -> list[AttentionLayer]:
    """The attention modules of `root`. Raises ValueError if it has none that Crisp can make sparse."""
    found = attention_layers(root)
    if not found:
        raise _unsupported(root, "none of its modules does")
    return found


def _unsupported(root: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(
        f"{type(root).__name__} (model type {root.config.model_type!r}) does not compute its attention through "
        f"transformers' attention interface, so Crisp cannot make it sparse: {reason}"
    )


def sparse_root(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`. Raises ValueError unless it is sparse, and really so."""
    root = outermost(model)
    if not hasattr(root, ORIGINALS):
        raise ValueError(
            f"this {type(root).__name__} is not sparse, or only as part of a larger sparse model: "
            f"call crisp.sparsify on it first"
        )
    check_active(root)
    return root


def check_active(root: PreTrainedModel) -> None:
    """Raise ValueError if another attention implementation was chosen since the model became sparse."""
    for layer, _ in settings_of(root):
        if (found := _implementation(layer)) != IMPLEMENTATION:
            raise ValueError(
                f"the attention implementation of {layer.name} was set to {found!r} after crisp.sparsify, "
                f"so the model is dense; call crisp.sparsify again"
            )
