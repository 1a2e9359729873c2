"""A method is where a query may look (layout) and what it keeps of what it sees (rule)."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from crisp_attention.layouts import Full, Layout, Window
from crisp_attention.rules import Dense, RandomK, Rule, TopK

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (Dense, TopK, RandomK)}
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (Full, Window)}


@dataclass(frozen=True)
class Method:
    """A sparse attention method, for example `Method(layout=Window(9), rule=TopK(0.5))`.

    Wherever a method is expected, a rule alone stands for that rule on every valid pair, and a
    layout alone for the dense rule inside it. A share rule counts the keys that the layout shows.
    """

    layout: Layout = field(default_factory=Full)
    rule: Rule = field(default_factory=Dense)

    def __post_init__(self) -> None:
        if not isinstance(self.layout, Layout):
            raise TypeError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def name(self) -> str:
        """`topk`, `window`, `window+topk` …: what `parse` reads."""
        parts = [] if isinstance(self.layout, Full) else [self.layout.name]
        if not parts or not isinstance(self.rule, Dense):
            parts.append(self.rule.name)
        return "+".join(parts)

    @property
    def sparsity(self) -> float | None:
        """The rule's target sparsity, None for rules without one."""
        return getattr(self.rule, "sparsity", None)

    @property
    def uses_positions(self) -> bool:
        """Whether the method needs to know where a query stands among the keys."""
        return self.layout.uses_positions or self.rule.uses_positions

    def with_sparsity(self, sparsity: float) -> "Method":
        """The same method at another target sparsity. Raises ValueError if its rule has none."""
        if self.sparsity is None:
            raise ValueError(f"method {self.name!r} has no sparsity to set")
        changes: dict[str, Any] = {"sparsity": sparsity}
        return replace(self, rule=replace(self.rule, **changes))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; `from_dict` is its inverse."""
        return {
            "layout": {"name": self.layout.name, **asdict(self.layout)},
            "rule": {"name": self.rule.name, **asdict(self.rule)},
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Method":
        """Rebuild a method from `to_dict`. Raises ValueError for anything it does not know."""
        if not isinstance(data, Mapping) or set(data) != {"layout", "rule"}:
            raise ValueError(f"a method needs exactly the keys 'layout' and 'rule', got {data!r}")
        return Method(layout=_build(LAYOUTS, data["layout"]), rule=_build(RULES, data["rule"]))


AnyMethod = Method | Rule | Layout
Part = TypeVar("Part", bound=Rule | Layout)


def as_method(method: AnyMethod) -> Method:
    """The `Method` that a method, a rule alone or a layout alone stands for."""
    if isinstance(method, Method):
        return method
    if isinstance(method, Rule):
        return Method(rule=method)
    if isinstance(method, Layout):
        return Method(layout=method)
    raise TypeError(f"expected a method such as crisp.TopK(sparsity=0.8), got {method!r}")


def parse(name: str, **options: Any) -> Method:
    """Build a method from its name and options, as the command line does.

    `name` is a rule (`topk`), a layout (`window`) or both joined by `+` (`window+topk`). Raises
    ValueError for an unknown name and for an option that no part of the method has.
    """
    parts: dict[str, Rule | Layout] = {}
    taken: set[str] = set()
    for word in name.split("+"):
        known: Mapping[str, type[Rule | Layout]] = RULES if word in RULES else LAYOUTS
        kind = "rule" if word in RULES else "layout"
        if word not in known:
            raise ValueError(f"unknown method {word!r}; the methods are {', '.join([*RULES, *LAYOUTS])}")
        if kind in parts:
            raise ValueError(f"method {name!r} names two {kind}s; join at most one layout and one rule")
        own = {f.name: options[f.name] for f in fields(known[word]) if f.name in options}
        taken |= set(own)
        parts[kind] = _build(known, {"name": word, **own})
    if unused := set(options) - taken:
        raise ValueError(f"method {name!r} has no option {', '.join(sorted(unused))}")
    return Method(**parts)  # type: ignore[arg-type]


def _build(known: Mapping[str, type[Part]], data: Any) -> Part:
    if not isinstance(data, Mapping) or "name" not in data:
        raise ValueError(f"expected a dictionary with a 'name', got {data!r}")
    options = {key: value for key, value in data.items() if key != "name"}
    if data["name"] not in list(known):
        raise ValueError(f"unknown name {data['name']!r}; known are {', '.join(known)}")
    cls = known[data["name"]]
    names = [f.name for f in fields(cls)]
    if unknown := set(options) - set(names):
        raise ValueError(
            f"{data['name']!r} has no option {', '.join(sorted(unknown))}; it has {', '.join(names)}"
        )
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.name not in options]
    if needed:
        raise ValueError(f"{data['name']!r} needs the option {', '.join(needed)}")
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"{data['name']!r}: {error}") from error
