"""A method is where a query may look (layout) and what it keeps of what it sees (rule)."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from crisp_attention.methods import layouts, rules
from crisp_attention.methods.checks import check_number
from crisp_attention.methods.layouts import Full, Layout
from crisp_attention.methods.rules import Dense, Rule

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in rules.ALL}
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in layouts.ALL}

# torch.compile follows a function to a constant, but not a factory that is a class
FULL, DENSE = Full(), Dense()


@dataclass(frozen=True)
class Method:
    """A sparse attention method, for example `Method(layout=Window(9), rule=TopK(0.5))`.

    Wherever a method is expected, a rule alone stands for that rule on every valid pair, and a
    layout alone for the dense rule inside it. A share rule counts the keys that the layout shows.
    """

    layout: Layout = field(default_factory=lambda: FULL)
    rule: Rule = field(default_factory=lambda: DENSE)

    def __post_init__(self) -> None:
        if not isinstance(self.layout, Layout):
            raise TypeError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def name(self) -> str:
        """`topk`, `window`, `window+topk` …"""
        return "+".join(called(part) for part in self._told())

    @property
    def spec(self) -> str:
        """`topk:sparsity=0.5`, `window:width=9`: name, first option, and what is not a default; `parse` reads it."""
        told = self._told()
        return "+".join(":".join([called(p), *(f"{k}={v}" for k, v in _chosen(p).items())]) for p in told)

    @property
    def sparsity(self) -> float | None:
        """The target sparsity; None for methods without one, and where layout and rule both have one."""
        found = [s for part in (self.layout, self.rule) if (s := getattr(part, "sparsity", None)) is not None]
        return found[0] if len(found) == 1 else None

    @property
    def uses_positions(self) -> bool:
        """Whether the method needs to know where a query stands among the keys."""
        return self.layout.uses_positions or self.rule.uses_positions

    @property
    def uses_seed(self) -> bool:
        """Whether the method draws at random."""
        return self.rule.uses_seed

    def drops_nothing(self, keys: int | None = None) -> bool:
        """Whether this is dense attention for rows of at most `keys` valid keys, or for rows of any length.

        Never for a subclass of the rules and layouts here: what it computes is its own.
        """
        if type(self.layout) not in layouts.ALL or type(self.rule) not in rules.ALL:
            return False
        return self.layout.shows_everything(keys) and self.rule.drops_nothing(keys)

    @property
    def block_size(self) -> int | None:
        """Keys in a block, None for methods without blocks."""
        return getattr(self.layout, "block_size", None)

    def initial(self, heads: int) -> dict[str, Tensor]:
        """Initial values of what a layer of so many heads learns for this method."""
        return self.rule.initial(heads)

    def with_sparsity(self, sparsity: float) -> "Method":
        """The same method at another target sparsity. Raises ValueError if it has none, or two.

        Raises TypeError for what is no number.
        """
        if self.sparsity is None:
            raise ValueError(f"method {self.name!r} has no sparsity, or two: there is not one to set")
        check_number("sparsity", sparsity, "[0, 1)")  # None would be the default
        changes: dict[str, Any] = {"sparsity": sparsity}
        if getattr(self.rule, "sparsity", None) is None:
            return replace(self, layout=replace(self.layout, **changes))
        return replace(self, rule=replace(self.rule, **changes))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; `from_dict` is its inverse."""
        return {
            "layout": {"name": called(self.layout), **asdict(self.layout)},
            "rule": {"name": called(self.rule), **asdict(self.rule)},
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Method":
        """Rebuild a method from `to_dict`. Raises ValueError for anything it does not know."""
        if not isinstance(data, Mapping) or set(data) != {"layout", "rule"}:
            raise ValueError(f"a method needs exactly the keys 'layout' and 'rule', got {data!r}")
        return Method(layout=build(LAYOUTS, data["layout"]), rule=build(RULES, data["rule"]))

    def _told(self) -> list[Rule | Layout]:
        parts: list[Rule | Layout] = [] if type(self.layout) is Full else [self.layout]
        return parts if parts and type(self.rule) is Dense else [*parts, self.rule]


AnyMethod = Method | Rule | Layout
Part = TypeVar("Part", bound=Rule | Layout)


def as_method(method: AnyMethod) -> Method:
    """The `Method` that a method, a rule alone or a layout alone stands for."""
    if isinstance(method, Method):
        return method
    if isinstance(method, Rule):
        return Method(FULL, method)
    if isinstance(method, Layout):
        return Method(method, DENSE)
    raise TypeError(f"expected a method such as crisp.TopK(sparsity=0.8), got {method!r}")


def called(part: Rule | Layout) -> str:
    """A rule's or layout's name, or that of its class where the name is another's, as a subclass inherits it."""
    owner = RULES.get(part.name) or LAYOUTS.get(part.name)
    return part.name if owner in (None, type(part)) else type(part).__name__


def build(known: Mapping[str, type[Part]], data: Any) -> Part:
    """A layout or rule from its dictionary. Raises ValueError for what the class does not know."""
    if not isinstance(data, Mapping) or "name" not in data:
        raise ValueError(f"expected a dictionary with a 'name', got {data!r}")
    options = {key: value for key, value in data.items() if key != "name"}
    if data["name"] not in list(known):
        raise ValueError(f"unknown name {data['name']!r}; known are {', '.join(known)}")
    cls = known[data["name"]]
    names = [f.name for f in fields(cls)]
    if unknown := set(options) - set(names):
        has = f"it has {', '.join(names)}" if names else "it has none"
        raise ValueError(f"{data['name']!r} has no option {', '.join(sorted(unknown))}; {has}")
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.name not in options]
    if needed:
        raise ValueError(f"{data['name']!r} needs the option {', '.join(needed)}")
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"{data['name']!r}: {error}") from error


def options_of(part: type[Rule | Layout]) -> dict[str, Any]:
    """The options of a rule or layout and their defaults, None for one that is needed or worked out."""
    if any(f.default is MISSING for f in fields(part)):
        return {f.name: None if f.default is MISSING else f.default for f in fields(part)}
    return asdict(part())


def _chosen(part: Rule | Layout) -> dict[str, Any]:
    needed = {f.name: getattr(part, f.name) for f in fields(part) if f.default is MISSING}
    usual, own = asdict(type(part)(**needed)), asdict(part)
    always = [*needed, *list(own)[:1]]  # what a method is named with is said even where it is as by default
    return {k: v for k, v in own.items() if v is not None and (k in always or v != usual[k])}
