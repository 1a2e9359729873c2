"""Which modules of a model compute attention by torch's `scaled_dot_product_attention`, and what they attend to."""

import inspect
import re
import sys
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from crisp_attention.methods.part import Shape

SDPA, MULTIHEAD = functional.scaled_dot_product_attention, functional.multi_head_attention_forward
NAMES = {SDPA.__name__, MULTIHEAD.__name__}
SEEN = "_crisp_seen"
CROSS = re.compile(r"cross|attn2$|enc_?dec", re.IGNORECASE)
HEADS = ("num_heads", "heads", "n_heads", "n_head", "num_attention_heads", "nhead")
GROUPS = ("num_kv_heads", "kv_heads", "n_kv_heads", "n_kv_head", "num_key_value_heads")
TOTALS = ("embed_dim", "inner_dim", "n_embd", "hidden_size", "dim")
WIDTHS = ("head_dim", "dim_head", "d_head", "head_size", "head_width")


@dataclass(frozen=True)
class Seen:
    """What one forward pass showed of an attention module: its shape, and the lengths of its first call.

    cross: whether its queries attend to keys of other tokens.
    """

    shape: Shape
    cross: bool
    queries: int
    keys: int


def attention_modules_of(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The attention modules by name, in order; never a part of one that was found. The root only if nothing else is."""
    stack, found = [("", root)], False
    while stack:
        name, module = stack.pop()
        if name and is_attention(module):
            found = True
            yield name, module
            continue
        inside = [(f"{name}.{own}" if name else own, child) for own, child in module.named_children()]
        stack.extend(reversed(inside))
    if not found and is_attention(root):
        yield "", root


def is_attention(module: nn.Module) -> bool:
    """Whether a module computes attention: it was seen to, or its class says so."""
    if hasattr(module, SEEN) or isinstance(module, nn.MultiheadAttention):
        return True
    return isinstance(module, _of_diffusers()) or _names_it(cast(Hashable, type(module)))


def look(model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[nn.Module, Seen]:
    """Run a model once, in evaluation mode, and see which of its modules call attention, and with what.

    A call counts for the innermost module that runs, or for the one around it that is known to be attention.
    """
    running: list[nn.Module] = []
    found: dict[nn.Module, Seen] = {}

    def begin(module: nn.Module, inputs: Any) -> None:
        running.append(module)

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    handles = [
        handle
        for module in model.modules()
        for handle in (
            module.register_forward_pre_hook(begin),
            module.register_forward_hook(end, always_call=True),
        )
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), _Looking(running, found):
            model.eval()(*given, **named)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found


class _Looking(TorchFunctionMode):
    def __init__(self, running: list[nn.Module], found: dict[nn.Module, Seen]) -> None:
        super().__init__()
        self.running, self.found = running, found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (SDPA, MULTIHEAD) and self.running:
            module = next((each for each in self.running if is_attention(each)), self.running[-1])
            if module not in self.found:
                self.found[module] = _seen(func, *args, **kwargs)
        return func(*args, **kwargs)


def _seen(func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Seen:
    if func is MULTIHEAD:
        heads = args[1] if len(args) > 1 else kwargs["num_heads"]
        shape = Shape(heads, heads, query.shape[-1] // heads)
        return Seen(shape, query is not key, query.shape[0], key.shape[0])
    heads, groups = (each.shape[-3] if each.dim() > 3 else 1 for each in (query, key))
    queries, keys = query.shape[-2], key.shape[-2]
    return Seen(Shape(heads, groups, query.shape[-1]), queries != keys, queries, keys)


def shape_of(module: Any) -> Shape:
    """The shape of an attention module. Raises ValueError if it does not say how many heads it has."""
    if (seen := getattr(module, SEEN, None)) is not None:
        return seen.shape
    heads = _number(module, HEADS)
    if heads is None:
        raise ValueError(
            f"{type(module).__name__} does not say how many heads it has; give crisp.sparsify inputs=, with which the "
            "model is run once"
        )
    width = _number(module, WIDTHS) or (_number(module, TOTALS) or _reads(module)) // heads
    return Shape(heads, _number(module, GROUPS) or heads, width)


def _reads(module: nn.Module) -> int:
    """The width of what the first linear part reads, which is that of all heads together as a rule."""
    linear = next((each for each in module.modules() if isinstance(each, nn.Linear)), None)
    if linear is None:
        raise ValueError(
            f"{type(module).__name__} does not say how wide its heads are; give crisp.sparsify inputs=, with which "
            "the model is run once"
        )
    return linear.in_features


def is_cross(name: str, module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether a module attends to keys of other tokens, as far as it was seen or its name says."""
    if (seen := getattr(module, SEEN, None)) is not None:
        return bool(seen.cross)
    if isinstance(told := getattr(module, "is_cross_attention", None), bool):
        return told
    if isinstance(parent, nn.TransformerDecoderLayer):
        return module is parent.multihead_attn
    return bool(CROSS.search(name.rpartition(".")[2]) or CROSS.search(type(module).__name__))


def _number(module: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(module, name, None) for name in names)
    return next((each for each in found if isinstance(each, int) and not isinstance(each, bool)), None)


def _of_diffusers() -> tuple[type, ...]:
    hooks = sys.modules.get("diffusers.hooks._common")
    if hooks is None and "diffusers" in sys.modules:
        from importlib import import_module

        hooks = import_module("diffusers.hooks._common")
    return tuple(getattr(hooks, "_ATTENTION_CLASSES", ()))


@cache
def _names_it(cls: Hashable) -> bool:
    functions = (inspect.unwrap(f) for _, f in inspect.getmembers(cls, inspect.isfunction))
    return any(NAMES & set(code.co_names) for f in functions for code in _codes(f.__code__))


def _codes(code: Any) -> Iterator[Any]:
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _codes(constant)
