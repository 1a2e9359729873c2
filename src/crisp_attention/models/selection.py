"""Selecting layers and heads by index, range or name pattern."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.heads import LayerMethod, PerHead, per_head
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.models.host import AttentionLayer, Host
from crisp_attention.models.parameters import wanted_by

Which = Literal["self", "cross", "all"]
Heads = Mapping[int | str, AnyMethod]
ForLayer = AnyMethod | PerHead | Heads
Choice = Iterable[int | str] | Mapping[int | str, ForLayer]
RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def select(
    host: Host,
    found: Sequence[AttentionLayer],
    method: ForLayer | Budgets | None,
    layers: Choice | None,
    attention: str,
) -> dict[int, LayerMethod]:
    """The method of every chosen layer, by layer index.

    `layers` None means all; an iterable of keys, or a mapping from keys to methods. A key is an
    index, a range `"2-5"` or a pattern on the layer's name; indices and ranges beat patterns, any
    pattern beats `"*"`, and a later key beats an earlier one of its sort. A method may be a mapping
    from heads to methods, with keys of the same kind. Raises TypeError or ValueError when the
    arguments contradict each other, a key matches nothing, or a method does not fit a layer.
    """
    if attention not in get_args(Which):
        raise ValueError(f"attention must be one of {', '.join(get_args(Which))}, got {attention!r}")
    if isinstance(method, Budgets):
        if layers is not None or attention != "self":
            raise TypeError("budgets already name their layers; remove layers and attention")
        named = {by_name(found, name): each for name, each in method.methods.items()}
        return {layer.index: fitting(host, each, layer) for layer, each in named.items()}
    eligible = [layer for layer in found if attention == "all" or layer.cross == (attention == "cross")]
    if not eligible:
        raise ValueError(f"no layer matched: the model has no {attention}-attention; {_listing(found)}")
    wanted = _wanted(method, layers)
    chosen: dict[int, LayerMethod] = {}
    for key in sorted(wanted, key=_precedence):
        matched = [layer for layer in eligible if _matches(key, layer.index, layer.name)]
        if not matched:
            reason = ""
            if any(_matches(key, layer.index, layer.name) for layer in found):
                reason = f" (it matches layers outside attention={attention!r})"
            raise ValueError(f"no layer matched {key!r}{reason}; {_listing(eligible)}")
        for layer in matched:
            chosen[layer.index] = fitting(host, wanted[key], layer)
    return chosen


def by_name(found: Sequence[AttentionLayer], name: str) -> AttentionLayer:
    """The layer of a saved name; a head adds a prefix to all names, a model without its head loses it."""
    matched = [
        layer
        for layer in found
        if f".{layer.name}".endswith(f".{name}") or f".{name}".endswith(f".{layer.name}")
    ]
    exact = [layer for layer in matched if layer.name == name]
    if len(exact or matched) != 1:
        raise ValueError(
            f"the settings name the layer {name!r}, which matches {len(matched)} layers of this model: "
            f"{', '.join(layer.name for layer in found)}"
        )
    return (exact or matched)[0]


def _wanted(method: ForLayer | None, layers: Choice | None) -> dict[int | str, ForLayer]:
    wanted: dict[int | str, ForLayer]
    if isinstance(layers, Mapping):
        if method is not None:
            raise TypeError("give either one method, or layers={key: method}, not both")
        wanted = dict(layers)
    else:
        if method is None:
            raise TypeError("a method is needed, for example crisp.TopK(sparsity=0.8), got None")
        if isinstance(layers, (str, int)):
            raise TypeError(f"layers must be a list or a mapping, got {layers!r}; write [{layers!r}]")
        wanted = dict.fromkeys(["*"] if layers is None else layers, method)
    _check_keys("layer", wanted)
    if not wanted:
        raise ValueError("layers is empty: no layer would be sparse")
    return wanted


def fitting(host: Host, wanted: ForLayer, layer: AttentionLayer) -> LayerMethod:
    """The method of a layer. Raises TypeError or ValueError if it does not fit it, as with other heads than it has."""
    place = f"layer {layer.index} ({layer.name})"
    if isinstance(wanted, PerHead):
        if len(wanted.methods) != (heads := host.shape(layer.module).heads):
            raise ValueError(f"{place} has {heads} heads, the method is for {len(wanted.methods)}")
        method: LayerMethod = wanted
    elif isinstance(wanted, Mapping):
        method = _by_head(wanted, host.shape(layer.module).heads, place)
    else:
        method = as_method(wanted)
    wanted_by(host, layer.module, method)
    if layer.cross and method.uses_positions:
        raise ValueError(
            f"method {method.name!r} places queries among the keys, which cross-attention does not have: {place}"
        )
    return method


def _by_head(wanted: Heads, heads: int, place: str) -> LayerMethod:
    _check_keys("head", wanted)
    if not wanted:
        raise ValueError("heads is empty: no head would be sparse")
    methods = [Method()] * heads
    for key in sorted(wanted, key=_precedence):
        matched = [head for head in range(heads) if _matches(key, head, str(head))]
        if not matched:
            raise ValueError(f"no head matched {key!r}: {place} has the heads 0-{heads - 1}")
        for head in matched:
            methods[head] = as_method(wanted[key])
    return per_head(methods)


def _check_keys(what: str, keys: Iterable[object]) -> None:
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise TypeError(f"a {what} key must be an index or a name pattern, got {key!r}")


def _precedence(key: int | str) -> int:
    if isinstance(key, int) or RANGE.fullmatch(key):
        return 2
    return 0 if key == "*" else 1


def _matches(key: int | str, index: int, name: str) -> bool:
    if number := RANGE.fullmatch(str(key)):
        first, last = number.group(1), number.group(2) or number.group(1)
        return int(first) <= index <= int(last)
    return fnmatchcase(name, str(key))


def _listing(layers: Sequence[AttentionLayer]) -> str:
    shown = [f"{layer.index} {layer.name}" for layer in layers]
    if len(shown) > 12:
        shown = [*shown[:6], "…", *shown[-3:]]
    return f"the layers are: {', '.join(shown)}"
