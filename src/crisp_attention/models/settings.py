"""What Crisp keeps on the attention modules of a model, and finding those modules."""

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from crisp_attention.kernels.dispatch import AUTO
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.part import Shape
from crisp_attention.models.calling import dispatching
from crisp_attention.models.configs import IMPLEMENTATION, config_of
from crisp_attention.models.decoding import Decoding

ATTRIBUTE = "_crisp"
Phase = Literal["always", "train", "eval"]
PHASES: tuple[str, ...] = get_args(Phase)
WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim")
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
CROSS = re.compile(r"cross|encoder_?attn|enc_?dec_?att", re.IGNORECASE)


@dataclass
class Settings:
    """Settings of one attention module; `method` None leaves the module as the model had it.

    `only_observed`: the model is not sparse, and loses its settings when nothing observes it any more.
    """

    index: int
    name: str
    cross: bool
    original: str
    method: LayerMethod | None = None
    phase: str = "always"
    backend: str = AUTO
    observers: list[Callable[["Settings", LayerMethod, Observation], None]] = field(default_factory=list)
    decoding: Decoding = field(default_factory=Decoding)
    hook: RemovableHandle | None = None
    only_observed: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "observers": []}  # a copy of the model is not being measured

    def __setstate__(self, state: dict[str, Any]) -> None:
        from crisp_attention.models.transformers import register

        register()  # the process that reads a sparse model may never have made one
        self.__dict__.update(state)

    def active_method(self, training: bool) -> LayerMethod | None:
        """The method to use now, None when the module is dense in this phase."""
        return self.method if self.phase in ("always", "train" if training else "eval") else None


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module of a model that dispatches through transformers' attention interface."""

    index: int
    name: str
    module: nn.Module
    cross: bool


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """The attention modules of `model` in order, cross-attention included, counted from 0."""
    found = [(name, module) for name, module in model.named_modules() if _dispatches(module)]
    return [
        AttentionLayer(i, name, module, _is_cross(name, module)) for i, (name, module) in enumerate(found)
    ]


def settings_of(model: nn.Module) -> list[tuple[AttentionLayer, Settings]]:
    """The layers that carry settings, that is: all layers of a sparse model, none of another."""
    return [
        (layer, getattr(layer.module, ATTRIBUTE))
        for layer in attention_layers(model)
        if hasattr(layer.module, ATTRIBUTE)
    ]


def check_dense(module: nn.Module) -> None:
    """Raise ValueError if a module without settings is configured to run Crisp's attention."""
    config = config_of(module)
    if config is None or config._attn_implementation == IMPLEMENTATION:
        raise ValueError(
            f"{type(module).__name__} has attn_implementation={IMPLEMENTATION!r} but no Crisp settings: the name alone "
            f"selects no method. Call crisp_attention.sparsify(model, method), or crisp_attention.restore(model) if "
            f"the model was saved sparse (crisp_attention.load(path) loads and restores it)"
        )


def heads_of(module: nn.Module) -> int:
    """The number of query heads of an attention module. Raises ValueError if it does not say."""
    for holder, names in ((module, HEAD_COUNTS), (config_of(module), HEAD_COUNTS[:1])):
        for name in names:
            if isinstance(heads := getattr(holder, name, None), int):
                return heads
    raise ValueError(f"{type(module).__name__} does not say how many heads it has")


def shape_of(module: nn.Module) -> Shape:
    """The heads of an attention module and their width. Raises ValueError if it does not say how many heads it has."""
    heads = heads_of(module)
    width = next((size for name in WIDTHS if isinstance(size := getattr(module, name, None), int)), None)
    width = width or getattr(config_of(module), "hidden_size", 64 * heads) // heads
    return Shape(heads, heads // getattr(module, "num_key_value_groups", 1), width)


def _dispatches(module: nn.Module) -> bool:
    return not isinstance(module, PreTrainedModel) and bool(dispatching(cast(Hashable, type(module))))


def _is_cross(name: str, module: nn.Module) -> bool:
    if getattr(module, "is_cross_attention", False):
        return True
    return bool(CROSS.search(type(module).__name__) or CROSS.search(".".join(name.split(".")[-2:])))
