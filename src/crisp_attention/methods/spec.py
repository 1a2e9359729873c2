"""Methods as text, as the command line writes them: `topk:sparsity=0.5`, `window:width=9+topk`."""

from collections.abc import Mapping
from typing import Any

from crisp_attention.errors import did_you_mean, listed
from crisp_attention.methods import layouts, rules
from crisp_attention.methods.checks import check_number
from crisp_attention.methods.combined import DIGITS, OPTIONS, SPARSE_LINEAR, check_shares, divided
from crisp_attention.methods.method import Method
from crisp_attention.methods.options import from_dict, options_of
from crisp_attention.methods.part import Part, registered


def parse(spec: str, **options: Any) -> Method:
    """Build a method from its spec.

    Parameters
    ----------
    spec
        A rule, a layout, or both joined by `+`, each `name:key=value:…`.
    **options
        For the part that has them; None counts as not given.

    Returns
    -------
    Method
        The method.

    Raises
    ------
    ValueError
        For an unknown name or option, for one that no part has, and for one that two parts have.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.parse("window:width=9+topk", sparsity=0.5) == crisp.Method(crisp.Window(9), crisp.TopK(0.5))
    True
    """
    known = registered(Part)
    if SPARSE_LINEAR in (word.split(":")[0] for word in spec.split("+")):
        return _combined(spec, options)
    own: dict[str, dict[str, Any]] = {}
    for word in spec.split("+"):
        name, *settings = word.split(":")
        if name not in known:
            names = dict.fromkeys(
                [*(each.name for each in (*rules.ALL, *layouts.ALL)), SPARSE_LINEAR, *known]
            )
            close = did_you_mean(name, names)
            raise ValueError(f"unknown method {name!r}{close or f'; the methods are {listed(names)}'}")
        kind = known[name].kind
        if kind in own:
            raise ValueError(
                f"method {spec!r} names two {kind}s; join at most one layout, one rule and one branch"
            )
        own[kind] = {"name": name}
        for key, value in (_setting(name, each) for each in settings):
            if key in own[kind]:
                raise ValueError(f"method {spec!r} sets {key} twice")
            own[kind][key] = value
    for option, value in options.items():
        if value is None:
            continue
        takers = [each for each in own.values() if option in options_of(known[each["name"]])]
        if not takers:
            raise ValueError(f"method {spec!r} has no option {option}")
        if len(takers) > 1:
            raise ValueError(
                f"both parts of {spec!r} have a {option}: write it in the part that it is for, "
                f"for example {takers[0]['name']}:{option}={value}"
            )
        if option in takers[0]:
            raise ValueError(f"method {spec!r} already sets {option}; it cannot be {value} as well")
        takers[0][option] = value
    parts: dict[str, Any] = {kind: from_dict(Part, data) for kind, data in own.items()}
    return Method(**parts)


def _combined(spec: str, options: Mapping[str, Any]) -> Method:
    name, *settings = spec.split(":")
    if "+" in spec:
        raise ValueError(
            f"{name} is a layout and a branch already: nothing can be joined to it, got {spec!r}"
        )
    own: dict[str, Any] = {}
    given = [_setting(name, each) for each in settings]
    given += [(option, value) for option, value in options.items() if value is not None]
    for option, value in given:
        if option == "sparsity":
            check_number(option, value, "[0, 1)")
            option, value = "critical", round(1 - value, DIGITS)
        if option not in OPTIONS:
            raise ValueError(f"method {spec!r} has no option {option}; it has sparsity, {', '.join(OPTIONS)}")
        if option in own:
            why = ", as sparsity is 1 - critical" if "sparsity" in dict(given) else ""
            raise ValueError(f"method {spec!r} sets {option} twice{why}")
        own[option] = value
    if "critical" in dict(given):  # a sparsity may leave less for what is negligible, as a schedule's do
        check_shares(own["critical"], own.get("negligible", OPTIONS["negligible"]))
    parts: dict[str, Any] = {kind: from_dict(Part, data) for kind, data in divided(own).items()}
    return Method(**parts)


def _setting(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ValueError(f"{name!r}: expected key=value, such as {name}:sparsity=0.5, got {text!r}")
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, {"True": True, "False": False}.get(value.capitalize(), value)
