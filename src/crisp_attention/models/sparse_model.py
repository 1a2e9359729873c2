"""A sparse model: its attention layers, found once, and reading and setting their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.models.host import CRISP, AttentionLayer, Host, host_of
from crisp_attention.models.parameters import give_parameters
from crisp_attention.models.record import Unsavable, record
from crisp_attention.models.rollback import all_or_nothing
from crisp_attention.models.settings import Settings, settings_of, settings_on

# On the outermost model: the objects themselves, so that a deep copy or a pickle of the model keeps them together.
STATE = "_crisp_model"


@dataclass(frozen=True)
class State:
    """The state on the root of a sparse model: its host, its layers, and what the host needs to give the model back."""

    host: Host
    layers: tuple[AttentionLayer, ...]
    taken: Any


@dataclass(frozen=True)
class SparseModel:
    """A model that `crisp.sparsify` made sparse: its host, and its root, which is not a wrapper.

    It holds nothing but these two, and can be made again whenever it is needed, without a walk over the modules.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> SparseModel.of(crisp.sparsify(model, crisp.TopK(sparsity=0.8))).sparsity
    {'encoder.layer.0.attention.self': 0.8}
    """

    host: Host
    root: nn.Module

    @staticmethod
    def find(model: nn.Module) -> "SparseModel | None":
        """The sparse model in `model`, which may be a wrapper; None if it is dense or part of a larger sparse model.

        Raises TypeError if there is no model that Crisp knows, or several.
        """
        # the state of its own, not that of what it wraps: `hasattr` of some wrappers asks what is inside
        if isinstance(model, nn.Module) and (state := vars(model).get(STATE)) is not None:
            return SparseModel(state.host, model)
        host, root = host_of(model)
        return SparseModel(host, root) if STATE in vars(root) else part_of(root)

    @staticmethod
    def of(model: nn.Module) -> "SparseModel":
        """The sparse model in `model`.

        Raises ValueError if it is not sparse, or another attention implementation was chosen since.
        """
        if (found := SparseModel.find(model)) is None:
            raise ValueError(
                f"this {type(host_of(model)[1]).__name__} is not sparse, or only as part of a larger sparse model: "
                f"call crisp.sparsify on it first"
            )
        found.check_active()
        return found

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """All attention layers in order, whether or not they have a method."""
        state: State = getattr(self.root, STATE)
        if all(_is_there(self.root, layer) for layer in state.layers):
            return state.layers
        found = tuple(carrying(self.host, self.root))  # layers were removed, replaced or renamed
        setattr(self.root, STATE, replace(state, layers=found))
        return found

    @property
    def settings(self) -> list[Settings]:
        """The settings of all layers."""
        return [settings_on(layer) for layer in self.layers]

    @property
    def methods(self) -> dict[str, LayerMethod]:
        """The methods by layer name, of the layers that have one."""
        found = {layer.name: settings_on(layer).method for layer in self.layers}
        return {name: method for name, method in found.items() if method is not None}

    @property
    def phase(self) -> str:
        """When the methods are active."""
        return self.settings[0].phase

    @property
    def sparsity(self) -> dict[str, float]:
        """The target sparsity by layer name, of the layers whose method has one.

        Raises ValueError if the heads of a layer have sparsities of their own.
        """
        return {
            n: method.sparsity for n, method in self._having_sparsity().items() if method.sparsity is not None
        }

    def set_sparsity(self, sparsity: float) -> None:
        """Set the target sparsity of every layer whose method has one; nothing else of the model is looked at.

        Raises ValueError or TypeError, as `crisp.set_sparsity` does.
        """
        having = self._having_sparsity()
        if not having:
            raise ValueError("no layer has a method with a sparsity to set")
        changed = {name: method.with_sparsity(sparsity) for name, method in having.items()}
        layers = [layer for layer in self.layers if layer.name in changed]
        holding = [layer for layer in layers if changed[layer.name].has_parameters]
        touched = [
            *map(settings_on, layers),
            *(layer.module for layer in holding),
            *self.host.held(self.root),
        ]
        with all_or_nothing(touched):
            for layer in layers:
                settings_on(layer).method = changed[layer.name]
            for layer in holding:  # their shapes may depend on the sparsity
                give_parameters(self.host, layer.module, changed[layer.name])
            self.write()

    def record(self) -> dict[str, Any]:
        """The settings as plain values, which `crisp.restore` reads."""
        found = record(self.methods, self.phase)
        return found if self.settings[0].dense_tokens == "text" else {**found, "dense_tokens": None}

    def write(self) -> None:
        """Keep the record where it is saved with the model; that of a class without a name cannot be saved."""
        try:
            settings = self.record()
        except ValueError as error:
            settings = Unsavable(str(error))
        self.host.write(self.root, settings)

    def check_active(self) -> None:
        """Raise ValueError if another attention implementation was chosen since the model became sparse."""
        check_active(self.host, self.layers)

    def _having_sparsity(self) -> Mapping[str, LayerMethod]:
        methods = self.methods
        for name, method in methods.items():
            if (
                isinstance(method, PerHead)
                and method.sparsity is None
                and any(each.sparsity for each in method.methods)
            ):
                raise ValueError(f"the heads of {name} have sparsities of their own, not one to set")
        return {name: method for name, method in methods.items() if method.sparsity is not None}


def is_sparse(model: nn.Module) -> bool:
    """Whether a model, or a part of it, was made sparse and is not dense again; also asked of a part of a sparse model.

    Parameters
    ----------
    model
        A model, or a module of one.

    Returns
    -------
    bool
        Whether it is sparse.

    Raises
    ------
    TypeError
        If there is no model that Crisp knows.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> crisp.is_sparse(model), crisp.is_sparse(crisp.sparsify(model, crisp.TopK(sparsity=0.8)))
    (False, True)
    """
    if not isinstance(model, nn.Module):
        host_of(model)  # which says what was expected
    found = (settings_of(module) for module in model.modules())
    return any(each is not None and not each.only_observed for each in found)


def set_sparsity(model: nn.Module, sparsity: float) -> None:
    """Set the target sparsity of every layer whose method has one.

    Parameters
    ----------
    model
        A model that `crisp.sparsify` made sparse.
    sparsity
        The share of keys, or of blocks of keys, that is dropped, in [0, 1).

    Raises
    ------
    ValueError
        If no layer has a sparsity, the heads of a layer have sparsities of their own, or for a number outside [0, 1).
    TypeError
        For anything but a number.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> model = crisp.sparsify(model, crisp.TopK(sparsity=0.8))
    >>> crisp.set_sparsity(model, 0.5)
    >>> model.config.crisp_attention["layers"]["encoder.layer.0.attention.self"]["rule"]["sparsity"]
    0.5
    """
    SparseModel.of(model).set_sparsity(sparsity)


def part_of(root: nn.Module) -> SparseModel | None:
    """The one part of a model that was made sparse by itself; None if there is none, or several."""
    states = [(vars(each)[STATE].host, each) for each in root.modules() if STATE in vars(each)]
    return SparseModel(*states[0]) if len(states) == 1 else None


def carrying(host: Host, root: nn.Module) -> list[AttentionLayer]:
    """The layers that carry settings: all layers of a sparse model, some of one with a sparse part."""
    return [layer for layer in host.layers(root) if settings_of(layer.module) is not None]


def check_active(host: Host, layers: tuple[AttentionLayer, ...] | list[AttentionLayer]) -> None:
    """Raise ValueError if another attention implementation was chosen for one of these layers of a sparse model."""
    for layer in layers:
        if (found := host.running(layer.module)) != CRISP:
            raise ValueError(
                f"the attention implementation of {layer.name} was set to {found!r} after crisp.sparsify, "
                f"so the model is dense; call crisp.sparsify again"
            )


def _is_there(root: nn.Module, layer: AttentionLayer) -> bool:
    try:
        return root.get_submodule(layer.name) is layer.module
    except AttributeError:
        return False
