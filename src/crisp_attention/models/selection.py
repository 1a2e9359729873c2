"""Which layers a user means: indices, ranges, name patterns."""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from crisp_attention.methods import AnyMethod, Method, as_method
from crisp_attention.models.settings import AttentionLayer

Which = Literal["self", "cross", "all"]
Choice = Iterable[int | str] | Mapping[int | str, AnyMethod]
RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def select(
    found: Sequence[AttentionLayer], method: AnyMethod | None, layers: Choice | None, attention: str
) -> dict[int, Method]:
    """The method of every chosen layer, by layer index.

    `layers` None means all; an iterable of keys, or a mapping from keys to methods. A key is an
    index, a range `"2-5"` or a pattern on the layer's name; indices and ranges beat patterns, any
    pattern beats `"*"`, and a later key beats an earlier one of its sort. Raises TypeError or
    ValueError when the arguments contradict each other, a key matches nothing, or a method does
    not fit a layer.
    """
    if attention not in get_args(Which):
        raise ValueError(f"attention must be one of {', '.join(get_args(Which))}, got {attention!r}")
    eligible = [layer for layer in found if attention == "all" or layer.cross == (attention == "cross")]
    if not eligible:
        raise ValueError(f"no layer matched: the model has no {attention}-attention; {_listing(found)}")
    wanted = _wanted(method, layers)
    chosen: dict[int, Method] = {}
    for key in sorted(wanted, key=_precedence):
        matched = [layer for layer in eligible if _matches(key, layer)]
        if not matched:
            reason = ""
            if any(_matches(key, layer) for layer in found):
                reason = f" (it matches layers outside attention={attention!r})"
            raise ValueError(f"no layer matched {key!r}{reason}; {_listing(eligible)}")
        for layer in matched:
            if layer.cross and wanted[key].uses_positions:
                raise ValueError(
                    f"method {wanted[key].name!r} places queries among the keys, which cross-attention does not "
                    f"have: layer {layer.index} ({layer.name})"
                )
            chosen[layer.index] = wanted[key]
    return chosen


def _wanted(method: AnyMethod | None, layers: Choice | None) -> dict[int | str, Method]:
    if isinstance(layers, Mapping):
        if method is not None:
            raise TypeError("give either one method, or layers={key: method}, not both")
        wanted = {key: as_method(each) for key, each in layers.items()}
    else:
        if method is None:
            raise TypeError("a method is needed, for example crisp.TopK(sparsity=0.8), got None")
        if isinstance(layers, (str, int)):
            raise TypeError(f"layers must be a list or a mapping, got {layers!r}; write [{layers!r}]")
        wanted = dict.fromkeys(["*"] if layers is None else layers, as_method(method))
    for key in wanted:
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise TypeError(f"a layer key must be an index or a name pattern, got {key!r}")
    if not wanted:
        raise ValueError("layers is empty: no layer would be sparse")
    return wanted


def _precedence(key: int | str) -> int:
    if isinstance(key, int) or RANGE.fullmatch(key):
        return 2
    return 0 if key == "*" else 1


def _matches(key: int | str, layer: AttentionLayer) -> bool:
    if number := RANGE.fullmatch(str(key)):
        first, last = number.group(1), number.group(2) or number.group(1)
        return int(first) <= layer.index <= int(last)
    return fnmatchcase(layer.name, str(key))


def _listing(layers: Sequence[AttentionLayer]) -> str:
    shown = [f"{layer.index} {layer.name}" for layer in layers]
    if len(shown) > 12:
        shown = [*shown[:6], "…", *shown[-3:]]
    return f"the layers are: {', '.join(shown)}"
