"""The backward pass by columns gives what the one row by row does."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from crisp_attention import Threshold, TopK, TopP
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import operators
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.method import as_method
from crisp_attention.testing import KernelContract
from crisp_attention.testing.calls import METHODS
from tests.cases import normal
from tests.kernels.test_cpu_chunks import results


class TestColumns(KernelContract):
    """The contract with so few keys in a block that all rows have several."""

    kernel, at_most = KERNELS["cpu"], 2
    methods = {name: METHODS[name] for name in ("topk", "topk, 4", "topp", "threshold")}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(operators, "COLUMNS", 5)


CALLS: dict[str, Callable[[Call], Call]] = {
    "all": lambda call: call,
    "causal": lambda call: replace(call, causal=True),
    "causal, later": lambda call: replace(call, causal=True, first_query=240),
    "padding": lambda call: replace(call, span=torch.tensor([[0, 170], [13, 300]])),
    "nothing but padding": lambda call: replace(call, span=torch.tensor([[0, 0], [250, 251]])),
    "causal and padding": lambda call: replace(call, causal=True, span=torch.tensor([[0, 170], [13, 300]])),
    "equal scores": lambda call: replace(call, key=(call.key * 2).round() / 2, query=call.query.round()),
    "all scores equal": lambda call: replace(call, query=torch.zeros_like(call.query), causal=True),
    "a query that is no number": lambda call: replace(
        call, query=call.query.index_fill(2, torch.tensor([5]), torch.nan), causal=True, first_query=100
    ),
    "a key that is infinite": lambda call: replace(
        call, key=call.key.index_fill(2, torch.tensor([99]), torch.inf)
    ),
    "a value that is infinite": lambda call: replace(
        call, value=call.value.index_fill(2, torch.tensor([99]), torch.inf)
    ),
    "dropout": lambda call: replace(call, dropout=0.3, span=torch.tensor([[0, 170], [13, 300]])),
    "dropout, causal": lambda call: replace(call, dropout=0.3, causal=True, first_query=150),
    "one query of many": lambda call: replace(call, query=call.query[:, :, :1].expand_as(call.query)),
}
RULES = {
    str(rule): rule
    for rule in (
        TopK(0.8),
        TopK(keep=1),
        TopK(keep=250),
        TopP(0.6),
        TopP(0.99),
        Threshold(0.3),
        TopK(0.9) | TopP(0.4),
    )
}


@pytest.mark.parametrize("change", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("columns", [96, 512])
def test_as_row_by_row(rule, change, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (
        normal(2, heads, length, width, seed=seed, dtype=torch.float32)
        for seed, (heads, length, width) in enumerate([(4, 150, 24), (2, 300, 24), (2, 300, 112)])
    )
    call = change(Call(query, key, value, as_method(rule), 0.25, first_query=150))
    monkeypatch.setattr(operators, "COLUMNS", columns)
    found = results(call)
    monkeypatch.setattr(operators, "by_columns", lambda *_: False)
    for one, other in zip(found, results(call), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5, equal_nan=True)


def test_a_single_key_that_is_kept_has_no_gradient_to_rounding() -> None:
    query, key, value = (normal(1, 2, 200, 40, seed=seed, dtype=torch.float32) for seed in range(3))
    _, to_query, to_key, _ = results(Call(query, key, value, as_method(TopK(keep=1)), 0.25))
    assert not to_query.any()
    assert not to_key.any()
