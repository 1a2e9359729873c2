"""Which methods meet which families: not every pair, but every method on some families, and some on every family."""

from collections.abc import Iterable

import pytest

from tests.contract.families import FAMILIES, available
from tests.table import ROWS

# slow tests run every method on these families, and these methods on every family
CORE_FAMILIES = ("bert", "llama", "t5")
CORE_METHODS = ("topk", "block_topk+entmax")


def in_turn(families: Iterable[str]) -> set[tuple[str, str]]:
    """Pairs of family and method in which each of either is at least once."""
    families, methods = list(families), list(ROWS)
    longest = max(len(families), len(methods))
    return {(families[i % len(families)], methods[i % len(methods)]) for i in range(longest)}


def pairs(
    names: Iterable[str], *, core: Iterable[str] = CORE_FAMILIES, more: bool = True
) -> pytest.MarkDecorator:
    """Parametrize `family` and `row` with the families and methods in turn; if `more`, with those of the core, slow."""
    names = list(names)
    fast = in_turn(names)
    slow = {(name, method) for name in names for method in ROWS if name in core or method in CORE_METHODS}
    return pytest.mark.parametrize(
        ("family", "row"),
        [
            pytest.param(
                family,
                row,
                id=f"{name}-{family.name}",
                marks=() if (family.name, name) in fast else pytest.mark.slow,
            )
            for family in available()
            for name, row in ROWS.items()
            if (family.name, name) in (fast | slow if more else fast)
        ],
    )


NAMES = [family.name for family in FAMILIES]
IN_TURN = in_turn(NAMES)
every_pair, pairs_in_turn = pairs(NAMES), pairs(NAMES, more=False)
