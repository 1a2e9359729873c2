"""A method is where a query may look (layout) and what it keeps of what it sees (rule)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crisp_attention.methods.checks import check_number
from crisp_attention.methods.layouts import Full, Layout
from crisp_attention.methods.options import check_named, from_dict, in_words, to_dict
from crisp_attention.methods.part import Parameter, Part, Shape, answers, called, registered
from crisp_attention.methods.rules import Dense, Rule

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
            raise TypeError(f"layout must be one of {', '.join(registered(Layout))}, got {self.layout!r}")
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be one of {', '.join(registered(Rule))}, got {self.rule!r}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The layout and the rule."""
        return self.layout, self.rule

    @property
    def name(self) -> str:
        """`topk`, `window`, `window+topk` …"""
        return "+".join(called(part) for part in self._told())

    @property
    def spec(self) -> str:
        """`topk:sparsity=0.5`, `window:width=9`: name, first option, and what is not a default; `parse` reads it.

        Raises ValueError if a class has no name of its own; `str` does not.
        """
        for part in (self.layout, self.rule):
            check_named(part)
        return str(self)

    def __str__(self) -> str:
        return "+".join(in_words(part) for part in self._told())

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

        A class of others that inherits its answer has none: what it computes is its own.
        """
        if not (answers(self.layout, "shows_everything") and answers(self.rule, "drops_nothing")):
            return False
        return self.layout.shows_everything(keys) and self.rule.drops_nothing(keys)

    @property
    def block_size(self) -> int | None:
        """Keys in a block, None for methods without blocks."""
        return getattr(self.layout, "block_size", None)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """What a layer of this shape holds for the method: `layout.…` and `rule.…`, by its part's name for it."""
        return {
            f"{part.kind}.{name}": each
            for part in self.parts
            for name, each in part.parameters(shape).items()
        }

    @property
    def has_parameters(self) -> bool:
        """Whether a layer holds parameters for it."""
        return bool(self.parameters(Shape(1, 1, 1)))

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
        return {"layout": to_dict(self.layout), "rule": to_dict(self.rule)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Method":
        """Rebuild a method from `to_dict`. Raises ValueError for anything it does not know."""
        if not isinstance(data, Mapping) or set(data) != {"layout", "rule"}:
            raise ValueError(f"a method needs exactly the keys 'layout' and 'rule', got {data!r}")
        return Method(layout=from_dict(Layout, data["layout"]), rule=from_dict(Rule, data["rule"]))

    def _told(self) -> list[Rule | Layout]:
        parts: list[Rule | Layout] = [] if type(self.layout) is Full else [self.layout]
        return parts if parts and type(self.rule) is Dense else [*parts, self.rule]


AnyMethod = Method | Rule | Layout


def as_method(method: AnyMethod) -> Method:
    """The `Method` that a method, a rule alone or a layout alone stands for."""
    if isinstance(method, Method):
        return method
    if isinstance(method, Rule):
        return Method(FULL, method)
    if isinstance(method, Layout):
        return Method(method, DENSE)
    raise TypeError(f"expected a method such as crisp.TopK(sparsity=0.8), got {method!r}")
