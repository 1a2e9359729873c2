"""Methods in one word, as the command line writes them: `topk:sparsity=0.5`, `window:width=9+topk`."""

from collections.abc import Mapping
from typing import Any

from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.method import LAYOUTS, RULES, Method, build, options_of
from crisp_attention.methods.rules import Rule


def parse(spec: str, **options: Any) -> Method:
    """Build a method from its spec: a rule, a layout, or both joined by `+`, each `name:key=value:…`.

    `options` are for the part that has them; None counts as not given. Raises ValueError for an
    unknown name or option, for one that no part has, and for one that two parts have.
    """
    parts: dict[str, Rule | Layout] = {}
    own: dict[str, dict[str, Any]] = {}
    for word in spec.split("+"):
        name, *settings = word.split(":")
        kind = "rule" if name in RULES else "layout"
        if name not in (RULES | LAYOUTS):
            raise ValueError(f"unknown method {name!r}; the methods are {', '.join([*RULES, *LAYOUTS])}")
        if kind in own:
            raise ValueError(f"method {spec!r} names two {kind}s; join at most one layout and one rule")
        own[kind] = {"name": name}
        for key, value in (_setting(name, each) for each in settings):
            if key in own[kind]:
                raise ValueError(f"method {spec!r} says {key} twice")
            own[kind][key] = value
    for option, value in options.items():
        if value is None:
            continue
        takers = [each for each in own.values() if option in _options(each["name"])]
        if not takers:
            raise ValueError(f"method {spec!r} has no option {option}")
        if len(takers) > 1:
            raise ValueError(
                f"both parts of {spec!r} have a {option}: write it where it belongs, "
                f"for example {takers[0]['name']}:{option}={value}"
            )
        if option in takers[0]:
            raise ValueError(f"method {spec!r} says {option} itself, so it cannot be {value} as well")
        takers[0][option] = value
    for kind, data in own.items():
        known: Mapping[str, type[Rule | Layout]] = RULES if kind == "rule" else LAYOUTS
        parts[kind] = build(known, data)
    return Method(**parts)  # type: ignore[arg-type]


def _options(name: str) -> list[str]:
    cls: type[Rule | Layout] = RULES[name] if name in RULES else LAYOUTS[name]
    return list(options_of(cls))


def _setting(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ValueError(f"{name!r}: expected key=value, such as {name}:sparsity=0.5, got {text!r}")
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, value
