"""Which modules of a model compute attention by torch's `scaled_dot_product_attention`, and what they attend to."""

import inspect
import re
import sys
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from crisp_attention.methods.part import Shape
from crisp_attention.models.borrowing import evaluating

SDPA, MULTIHEAD = functional.scaled_dot_product_attention, functional.multi_head_attention_forward
NAMES = {SDPA.__name__, MULTIHEAD.__name__}
SEEN = "_crisp_seen"
MODE = "crisp_attention.models.sdpa.mode"  # whose hooks a pass leaves out
CROSS = re.compile(
    r"cross|xattn|attn2(\.|$)|co_attn|enc(oder)?_?dec|(encoder|enc|src|source|context|memory)_att",
    re.IGNORECASE,
)
SELF = re.compile(r"self|attn1(\.|$)", re.IGNORECASE)
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
    """The attention modules by name, in order, each once; never a part of one that its class shows to be one.

    A module that only a pass showed may have others in it. The root counts if nothing else does, or a pass showed it.
    """
    stack: list[tuple[str, nn.Module]] = [("", root)]
    done: set[nn.Module] = set()
    while stack:
        name, module = stack.pop()
        if module in done:
            continue
        done.add(module)
        if name and is_attention(module):
            yield name, module
            if not _only_seen(module):
                continue
        inside = [(f"{name}.{own}" if name else own, child) for own, child in module.named_children()]
        stack.extend(reversed(inside))
    if hasattr(root, SEEN) or (is_attention(root) and not any(map(is_attention, done - {root}))):
        yield "", root


def is_attention(module: nn.Module) -> bool:
    """Whether a module computes attention: it was seen to, or its class says so."""
    return hasattr(module, SEEN) or _shown(module)


def _shown(module: nn.Module) -> bool:
    known = (nn.MultiheadAttention, *_of_diffusers())
    return isinstance(module, known) or _names_it(cast(Hashable, type(module)))


def _only_seen(module: nn.Module) -> bool:
    return hasattr(module, SEEN) and not _shown(module)


def look(model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> dict[nn.Module, Seen]:
    """Run a model once, dense and in evaluation mode, and see which of its modules call attention, and with what.

    A call counts for the innermost module that runs, or for the one around it that is known to be attention.
    """
    running: list[tuple[nn.Module, tuple[Any, ...]]] = []
    found: dict[nn.Module, Seen] = {}
    handles: list[Any] = []

    def begin(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        running.append((module, (*inputs, *named.values())))

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    with _without_ours(model), evaluating(model):
        try:
            for module in model.modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
                    handles.append(module.register_forward_hook(end, always_call=True))
            with _Looking(running, found):
                model(*given, **named)
        finally:
            for handle in handles:
                handle.remove()
    return found


@contextmanager
def _without_ours(model: nn.Module) -> Iterator[None]:
    """The hooks of a sparse model are off, so that it calls torch's functions."""
    hooks = [each for m in model.modules() for each in (m._forward_pre_hooks, m._forward_hooks)]
    before = [dict(each) for each in hooks]
    try:
        for each in hooks:
            for key in [key for key, hook in each.items() if getattr(hook, "__module__", "") == MODE]:
                del each[key]
        yield
    finally:
        for each, all_of_them in zip(hooks, before, strict=True):
            each.clear()
            each.update(all_of_them)


class _Looking(TorchFunctionMode):
    def __init__(
        self, running: list[tuple[nn.Module, tuple[Any, ...]]], found: dict[nn.Module, Seen]
    ) -> None:
        super().__init__()
        self.running, self.found = running, found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (SDPA, MULTIHEAD) and self.running:
            known = (each for each in reversed(self.running) if _shown(each[0]))
            module, given = next(known, self.running[-1])
            if module not in self.found:
                self.found[module] = _seen(given, func, *args, **kwargs)
        return func(*args, **kwargs)


def _seen(
    given: tuple[Any, ...], func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Seen:
    if func is MULTIHEAD:
        heads = args[1] if len(args) > 1 else kwargs["num_heads"]
        shape = Shape(heads, heads, query.shape[-1] // heads)
        same = query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
        return Seen(shape, not same or len(query) != len(key), query.shape[0], key.shape[0])
    heads, groups = (each.shape[-3] if each.dim() > 3 else 1 for each in (query, key))
    queries, keys = query.shape[-2], key.shape[-2]
    # more keys than queries are those of a cache, unless the module was given as many other tokens
    others = any(
        isinstance(each, Tensor)
        and each.is_floating_point()
        and each.dim() == 3
        and keys in each.shape[:-1]
        and queries not in each.shape[:-1]
        for each in given
    )
    return Seen(Shape(heads, groups, query.shape[-1]), keys < queries or others, queries, keys)


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
    """Whether a module attends to keys of other tokens, as its name says or, where that says nothing, a pass showed."""
    if isinstance(told := getattr(module, "is_cross_attention", None), bool):
        return told
    if name.rpartition(".")[2] == "multihead_attn" and hasattr(
        parent, "self_attn"
    ):  # of torch's decoders, and DETR's
        return True
    words = ".".join(name.split(".")[-2:])
    if CROSS.search(words):
        return True
    seen: Seen | None = getattr(module, SEEN, None)
    if seen is not None and (seen.queries != seen.keys or not SELF.search(words)):
        return seen.cross
    return not SELF.search(words) and bool(CROSS.search(type(module).__name__))


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
    own = [
        getattr(each, "__func__", each) for base in cast(type, cls).__mro__ for each in vars(base).values()
    ]
    functions = [inspect.unwrap(each) for each in own if inspect.isfunction(each)]
    ours = [each for each in functions if not (each.__module__ or "").startswith("torch.nn.modules")]
    return any(map(_calls_it, ours)) or any(_calls_it(each) for f in ours for each in _helpers(f))


def _calls_it(function: FunctionType) -> bool:
    """Whether a function's code names torch's attention, or a name that stands for it there."""
    known = function.__globals__
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    return any(name in NAMES or any(known.get(name) is each for each in (SDPA, MULTIHEAD)) for name in names)


def _helpers(function: FunctionType) -> Iterator[FunctionType]:
    """The functions of the same file that a function's code names."""
    for code in _codes(function.__code__):
        for name in code.co_names:
            found = function.__globals__.get(name)
            if inspect.isfunction(found) and found.__module__ == function.__module__:
                yield found


def _codes(code: Any) -> Iterator[Any]:
    yield code
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _codes(constant)
