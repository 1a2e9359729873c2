"""A method is where a query may look (layout), what it keeps of that (rule), and what is added to it (branch)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch

from crisp_attention.methods.branches import Branch
from crisp_attention.methods.checks import check_number
from crisp_attention.methods.combined import OPTIONS, combined
from crisp_attention.methods.layouts import Full, Layout
from crisp_attention.methods.options import check_named, from_dict, in_words, to_dict, words
from crisp_attention.methods.part import Parameter, Part, Shape, answers, called, registered
from crisp_attention.methods.rules import Dense, Rule
from crisp_attention.methods.temperature import LEARNED

# torch.compile follows a function to a constant, but not a factory that is a class
FULL, DENSE = Full(), Dense()
TEMPERATURE = "rule.temperature"


@dataclass(frozen=True)
class Method:
    """A sparse attention method, for example `Method(layout=Window(9), rule=TopK(0.5))`.

    Wherever a method is expected, a rule alone stands for that rule on every valid pair, and a
    layout alone for the dense rule inside it. A share rule counts the keys that the layout shows.

    Parameters
    ----------
    layout
        Where a query may look, by default at every valid pair.
    rule
        What a query keeps of that, by default all.
    branch
        A branch, whose output is added to that of the rule; None for none.

    Raises
    ------
    TypeError
        For a part of another kind.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> method = crisp.Method(layout=crisp.Window(9), rule=crisp.TopK(0.5))
    >>> method.spec
    'window:width=9+topk:sparsity=0.5'
    >>> method.with_sparsity(0.8).sparsity
    0.8
    """

    layout: Layout = field(default_factory=lambda: FULL)
    rule: Rule = field(default_factory=lambda: DENSE)
    branch: Branch | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layout, Layout):
            raise TypeError(
                f"layout must be one of {', '.join(sorted(registered(Layout)))}, got {self.layout!r}"
            )
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be one of {', '.join(sorted(registered(Rule)))}, got {self.rule!r}")
        if self.branch is not None and not isinstance(self.branch, Branch):
            raise TypeError(f"branch must be a crisp.Branch or None, got {self.branch!r}")
        if self.branch is not None:
            self.branch.check(self.layout)
        Rule.__post_init__(self.rule)  # also for a rule that overrides the checks of its base

    @property
    def parts(self) -> tuple[Part, ...]:
        """The layout, the rule and the branch, if there is one."""
        parts = (self.layout, self.rule, self.branch)
        return tuple(part for part in parts if part is not None)

    @property
    def name(self) -> str:
        """`topk`, `window`, `window+topk` …"""
        known = combined(self.layout, self.rule, self.branch)
        return "+".join(called(part) for part in self._told()) if known is None else known[0]

    @property
    def spec(self) -> str:
        """`topk:sparsity=0.5`, `window:width=9`: name, first option, and what is not a default; `parse` reads it.

        Raises ValueError if a class has no name of its own; `str` does not.
        """
        for part in self.parts:
            check_named(part)
        return str(self)

    def __str__(self) -> str:
        if (known := combined(self.layout, self.rule, self.branch)) is not None:
            return words(*known, OPTIONS)
        return "+".join(in_words(part) for part in self._told())

    @property
    def sparsity(self) -> float | None:
        """The target sparsity; None for methods without one, and where layout and rule both have one."""
        found = [s for part in (self.layout, self.rule) if (s := getattr(part, "sparsity", None)) is not None]
        return found[0] if len(found) == 1 else None

    @property
    def uses_positions(self) -> bool:
        """Whether the method needs to know where a query stands among the keys."""
        return any(part.uses_positions for part in self.parts)

    @property
    def uses_seed(self) -> bool:
        """Whether the method draws at random."""
        return self.rule.uses_seed

    @property
    def has_branch(self) -> bool:
        """Whether a branch adds to the output, so that there are no weights to return."""
        return self.branch is not None

    def drops_nothing(self, keys: int | None = None) -> bool:
        """Whether this is dense attention for rows of at most `keys` valid keys, or for rows of any length.

        The inherited answer of a derived class does not count: it may compute anything.
        """
        if self.rule.temperature != 1:
            return False
        if self.branch is not None and not (
            answers(self.branch, "adds_nothing") and self.branch.adds_nothing()
        ):
            return False
        if not (answers(self.layout, "shows_everything") and answers(self.rule, "drops_nothing")):
            return False
        return self.layout.shows_everything(keys) and self.rule.drops_nothing(keys)

    @property
    def block_size(self) -> int | None:
        """Keys in a block, None for methods without blocks."""
        size = getattr(self.layout, "block_size", 1)
        return size if size > 1 else None

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """What a layer of this shape holds for the method, such as `rule.alpha`: by part, and its name there."""
        found = {
            f"{part.kind}.{name}": each
            for part in self.parts
            for name, each in part.parameters(shape).items()
        }
        if self.rule.temperature == LEARNED:
            found[TEMPERATURE] = Parameter(torch.zeros(shape.heads))
        return found

    @property
    def has_parameters(self) -> bool:
        """Whether a layer holds parameters for it."""
        return bool(self.parameters(Shape(1, 1, 1)))

    @property
    def is_fitted(self) -> bool:
        """Whether some of them are found by `crisp.fit`."""
        return any(not each.trained for each in self.parameters(Shape(1, 1, 1)).values())

    def with_sparsity(self, sparsity: float) -> "Method":
        """The same method at another target sparsity. Raises ValueError if it has none, or two.

        Raises TypeError for anything but a number.
        """
        if self.sparsity is None:
            raise ValueError(
                f"method {self.name!r} has no single sparsity to set (none, or one of the layout and one of the rule)"
            )
        if isinstance(sparsity, Real) and not isinstance(sparsity, bool):
            sparsity = float(sparsity)  # of numpy, which JSON does not know
        check_number("sparsity", sparsity, "[0, 1)")  # None would be the default
        changes: dict[str, Any] = {"sparsity": sparsity}
        if getattr(self.rule, "sparsity", None) is None:
            return replace(self, layout=replace(self.layout, **changes))
        return replace(self, rule=replace(self.rule, **changes))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; `from_dict` is its inverse."""
        return {part.kind: to_dict(part) for part in self.parts}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Method":
        """Rebuild a method from `to_dict`. Raises ValueError for anything it does not know."""
        if not isinstance(data, Mapping) or set(data) - {"branch"} != {"layout", "rule"}:
            raise ValueError(
                f"a method needs exactly the keys 'layout' and 'rule', and 'branch' where it has one, got {data!r}"
            )
        branch = from_dict(Branch, data["branch"]) if "branch" in data else None
        return Method(from_dict(Layout, data["layout"]), from_dict(Rule, data["rule"]), branch)

    def _told(self) -> list[Part]:
        told = [part for part in self.parts if type(part) is not Full and part != DENSE]
        return told if told and told != [self.branch] else [self.rule, *told]


AnyMethod = Method | Rule | Layout | Branch


def as_method(method: AnyMethod) -> Method:
    """The `Method` that a method, or a part of one alone, stands for."""
    if isinstance(method, Method):
        return method
    if isinstance(method, Rule):
        return Method(FULL, method)
    if isinstance(method, Layout):
        return Method(method, DENSE)
    if isinstance(method, Branch):
        return Method(FULL, DENSE, method)
    raise TypeError(f"expected a method such as crisp.TopK(sparsity=0.8), got {method!r}")
