"""Which methods meet which families: not every pair, but every method on some families, and some on every family."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import crisp_attention as crisp
from crisp_attention.methods.method import AnyMethod
from crisp_attention.models.parameters import fill_parameters, parameters_of, wanted_by
from crisp_attention.models.settings import settings_on
from tests.contract.families import FAMILIES, available
from tests.models.tiny import layers_of
from tests.table import ROWS

# slow tests run every method on these families, and these methods on every family
CORE_FAMILIES = ("bert", "llama", "t5")
CORE_METHODS = ("topk", "block_topk+entmax")


KINDS = {family.name: family.kind for family in FAMILIES}


def fits(family: str, method: str) -> bool:
    """Whether the method is defined for the family's attention."""
    return ROWS[method].causal or KINDS[family] not in ("decoder", "seq2seq")


def in_turn(families: Iterable[str]) -> set[tuple[str, str]]:
    """Pairs of family and method in which each of either is at least once, if it fits any."""
    families, methods = list(families), list(ROWS)
    longest = max(len(families), len(methods))
    pairs = {(families[i % len(families)], methods[i % len(methods)]) for i in range(longest)}
    for family, method in sorted(pairs):
        if not fits(family, method):
            pairs -= {(family, method)}
            others = [(family, "topk"), *((each, method) for each in families if fits(each, method))]
            pairs |= set(others[:2])
    return pairs


def sparse(model: PreTrainedModel, method: AnyMethod | None = None, **how: Any) -> PreTrainedModel:
    """The model made sparse, with numbers for what its methods want fitted."""
    crisp.sparsify(model, method, **how)
    for layer in layers_of(model):
        values = parameters_of(layer.module)
        wanted = wanted_by(settings_on(layer).host, layer.module, settings_on(layer).method)
        missing = {name: each for name, each in wanted.items() if name not in values}
        if missing:
            draw = torch.Generator().manual_seed(layer.index)
            drawn = {
                name: 0.5 * torch.randn(each.value.shape, generator=draw) for name, each in missing.items()
            }
            fill_parameters(layer.module, drawn)
    return model


def pairs(
    names: Iterable[str], *, core: Iterable[str] = CORE_FAMILIES, more: bool = True
) -> pytest.MarkDecorator:
    """Parametrize `family` and `row` with the families and methods in turn; if `more`, with those of the core, slow."""
    names = list(names)
    fast = in_turn(names)
    slow = {
        (name, method)
        for name in names
        for method in ROWS
        if fits(name, method) and (name in core or method in CORE_METHODS)
    }
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
