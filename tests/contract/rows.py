"""Every method on every model family."""

from collections.abc import Iterable

import pytest

from tests.contract.families import available
from tests.table import ROWS

# `make test` runs every method on these, and these methods on every family; `make test-all` the rest
CORE_FAMILIES = {"bert", "llama", "t5"}
CORE_METHODS = {"topk", "block_topk+entmax"}


def pairs(names: Iterable[str], core: set[str]) -> pytest.MarkDecorator:
    """Parametrize `family` and `row`: every method on every family named, fast only where one is in the core."""
    return pytest.mark.parametrize(
        ("family", "row"),
        [
            pytest.param(
                family,
                row,
                id=f"{name}-{family.name}",
                marks=() if family.name in core or name in CORE_METHODS else pytest.mark.slow,
            )
            for family in available()
            if family.name in names
            for name, row in ROWS.items()
        ],
    )


every_pair = pairs([family.name for family in available()], CORE_FAMILIES)
