"""Making a model sparse, and dense again."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from crisp_attention.kernels.dispatch import AUTO, check_backend
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.host import CRISP, AttentionLayer, Host, host_of, look
from crisp_attention.models.parameters import (
    give_parameters,
    holding,
    is_trained,
    kinds,
    parameters_of,
    take_parameters,
    wanted_by,
)
from crisp_attention.models.rollback import all_or_nothing, everything
from crisp_attention.models.selection import Choice, ForLayer, Heads, Which, select
from crisp_attention.models.settings import ATTRIBUTE, PHASES, Phase, Settings, settings_of, settings_on
from crisp_attention.models.sparse_model import STATE, SparseModel, State, carrying

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
    dense_tokens: str | None = "text",
    inputs: Any = None,
) -> Model:
    """Make the attention of a model sparse, in place, and return the model.

    Call it on the model that you save: a part's settings are not in the configuration of the whole. Calling it again
    replaces the earlier settings, those of layers that are not chosen too; learned parameters are kept as long as the
    layer's method has them, and a warning says where they were trained and are dropped. On a PEFT model of transformers
    they are trained and saved with the adapters.

    Parameters
    ----------
    model
        A transformers model, any other module that calls torch's `scaled_dot_product_attention`, or a wrapper around
        one.
    method
        One method for all chosen layers, or budgets, as `crisp.budgets` reads them.
    layers
        Attention modules by index (`[2, 3]`), range (`["2-5"]`) or name pattern (`["encoder.*"]`); or each with
        its own method (`{"*": TopK(0.8), "0": Dense()}`: an index beats a pattern). Other layers are dense.
    heads
        A method for each head (`{"0-3": TopK(0.9), "*": TopK(0.5)}`; heads without one are dense), in every chosen
        layer. Such a mapping can also stand for a method in `layers`.
    phase
        When the method is active: "always", or in "train" or "eval" mode only.
    attention
        Which modules count: "self", "cross" or "all".
    backend
        The kernel that computes it, by default the fastest that can (`crisp.explain` says which). It belongs to
        the machine and is not saved with the model.
    dense_tokens
        In the joint attention over text and image tokens of diffusers' SD3, Flux and CogVideoX "text" leaves the text
        dense: every query sees its keys, its queries see everything, and the method decides on the other tokens as if
        they were alone. None: the method decides on all. It is saved with the model; other models have no such tokens.
    inputs
        What the model is called with, a tuple or a mapping, or one tensor: it is run once, to find attention modules
        whose code does not name torch's function. Not for models of transformers.

    Returns
    -------
    The same model.

    Raises
    ------
    TypeError, ValueError
        If the model's attention cannot be reached, a layer or head does not exist, a method
        does not fit, or the sparse model could not be saved. After an error the model is unchanged.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    >>> model = crisp.sparsify(model, crisp.TopK(sparsity=0.8), layers=[1])
    >>> crisp.is_sparse(model)
    True
    """
    if heads is not None:
        if method is not None or isinstance(layers, Mapping):
            raise TypeError("give either heads={key: method}, or a method, or layers={key: method}")
        method = heads
    check_backend(backend)
    if inputs is not None and isinstance(model, nn.Module):
        with all_or_nothing(list(model.modules())):
            look(model, inputs)
            return sparsify(
                model,
                method,
                layers=layers,
                phase=phase,
                attention=attention,
                backend=backend,
                dense_tokens=dense_tokens,
            )
    host, root = host_of(model)
    found = supported_layers(host, root)
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
    if dense_tokens not in ("text", None):
        raise ValueError(f"dense_tokens must be 'text' or None, got {dense_tokens!r}")
    chosen = select(host, found, method, layers, attention)
    host.check_savable(root)
    with all_or_nothing(everything(host, root)):
        dropped = _dropped(host, root, chosen)
        sparse = activate(host, root, chosen, phase, backend, dense_tokens)
        host.adopt(model, root, holding(sparse.layers))
        host.erase(root)
        sparse.write()
        never = phase == "eval" and any(is_trained(layer.module) for layer in holding(sparse.layers))
    if dropped:
        warnings.warn(
            f"what {', '.join(dropped)} had learned is dropped with the earlier method", stacklevel=2
        )
    if never:
        warnings.warn(
            "the method has parameters, and phase='eval' trains none: they stay as they are", stacklevel=2
        )
    return model


def densify(model: Model) -> Model:
    """Undo `sparsify`, in place: the model is exactly what it was, and dense.

    Settings that came with a checkpoint or an adapter are removed too: the model is saved dense.

    Parameters
    ----------
    model
        A sparse model.

    Returns
    -------
    The same model.

    Raises
    ------
    ValueError
        If the model is not sparse.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> model = crisp.densify(crisp.sparsify(model, crisp.TopK(sparsity=0.8)))
    >>> crisp.is_sparse(model)
    False
    """
    sparse = SparseModel.of(model)
    with all_or_nothing(everything(sparse.host, sparse.root)):
        deactivate(sparse)
        sparse.host.forget(model, sparse.root)
    return model


def _dropped(host: Host, root: nn.Module, chosen: Mapping[int, LayerMethod]) -> list[str]:
    """The layers whose trained parameters have no place in the methods that are chosen now."""
    found = []
    for layer in carrying(host, root):
        held = parameters_of(layer.module)
        before = wanted_by(host, layer.module, settings_on(layer).method) if held else {}
        now = kinds(wanted_by(host, layer.module, chosen.get(layer.index)))
        trained = (
            name
            for name, each in before.items()
            if each.trained and name in held and not held[name].detach().cpu().equal(each.value.cpu())
        )
        if any(now.get(name) != kinds(before)[name] for name in trained):
            found.append(layer.name)
    return found


def activate(
    host: Host,
    root: nn.Module,
    chosen: Mapping[int, LayerMethod],
    phase: str,
    backend: str = AUTO,
    dense_tokens: str | None = "text",
) -> SparseModel:
    """Give every attention module its settings and let Crisp compute its attention.

    What is saved with the model stays as it is. Raises ValueError, and changes nothing, if `root` is part of
    a sparse model, or a module does not switch.
    """
    with all_or_nothing(everything(host, root)):
        found = host.layers(root)
        before = {layer.index: settings_on(layer) for layer in carrying(host, root)}
        for part in list(root.modules()):
            if part is not root and STATE in vars(part):
                deactivate(SparseModel(vars(part)[STATE].host, part))
        if STATE not in vars(root):
            if carrying(host, root):
                raise ValueError(
                    f"this {type(root).__name__} is part of a larger sparse model: "
                    f"call crisp.sparsify on that one, with layers=[...]"
                )
            taken = host.take_over(root)
        else:
            taken = getattr(root, STATE).taken
        setattr(root, STATE, State(host, tuple(found), taken))
        for layer in found:
            old = before.get(layer.index)
            settings = Settings(
                index=layer.index,
                name=layer.name,
                cross=layer.cross,
                original=host.own(root, layer.module, taken),
                host=host,
                method=chosen.get(layer.index),
                phase=phase,
                backend=backend,
                dense_tokens=dense_tokens,
                observers=old.observers if old else [],
            )
            setattr(layer.module, ATTRIBUTE, settings)
            give_parameters(host, layer.module, settings.method)
        host.switch(root)  # last: another thread may be running the model
        if stuck := [layer.name for layer in found if host.running(layer.module) != CRISP]:
            raise ValueError(f"{host.why_not(root)}: {stuck[0]} did not switch its implementation")
    return SparseModel(host, root)


def deactivate(sparse: SparseModel) -> None:
    """Undo `activate`."""
    host, root = sparse.host, sparse.root
    with all_or_nothing(everything(host, root)):
        host.give_back(root, getattr(root, STATE).taken)
        delattr(root, STATE)
        for module in root.modules():
            if settings_of(module) is not None:
                delattr(module, ATTRIBUTE)
                take_parameters(module)


def supported_layers(host: Host, root: nn.Module) -> list[AttentionLayer]:
    """The attention modules of `root`. Raises ValueError if it has none that Crisp can make sparse."""
    if not (found := host.layers(root)):
        raise ValueError(f"{host.why_not(root)}: none of its modules does")
    return found
