"""Rows that are multiplied by chunks of keys are what they are one by one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention import Entmax, NofM, Threshold, TopK, TopP
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import operators
from crisp_attention.kernels.cpu.plan import Plan, code_of
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.method import as_method
from crisp_attention.testing import KernelContract
from crisp_attention.testing.calls import METHODS
from tests.cases import normal

BY_LISTS = "topk", "topk, 4", "topk, sharper", "topp", "threshold", "nofm", "entmax", "sparsemax"


class TestShortRows(KernelContract):
    """The contract with rows of any length gone through as long ones are."""

    kernel, at_most = KERNELS["cpu"], 2
    methods = {name: METHODS[name] for name in BY_LISTS}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _all_are_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(operators, "by_columns", lambda *_: False)
        monkeypatch.setattr(operators, "LONG", 0)
        monkeypatch.setattr(operators, "CHUNK", (2**8, 2**18))
        monkeypatch.setattr(operators, "CHUNK_BACKWARD", (2**8, 2**18))
        monkeypatch.setattr(operators, "LEAST_CHUNK", 16)


def results(call: Call) -> list[Tensor]:
    """Output and gradients."""
    leaves = [each.detach().requires_grad_() for each in (call.query, call.key, call.value)]
    output, _ = dispatch.attention(
        replace(call, query=leaves[0], key=leaves[1], value=leaves[2], generator=torch.Generator()), "cpu"
    )
    slopes = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad(output, leaves, slopes)]


CALLS: dict[str, Callable[[Call], Call]] = {
    "all": lambda call: call,
    "causal": lambda call: replace(call, causal=True),
    "padding": lambda call: replace(call, span=torch.tensor([[0, 700], [13, 1100]])),
    "a mask": lambda call: replace(call, valid=torch.arange(1100).view(1, 1, 1, 1100) % 3 > 0),
    "equal scores": lambda call: replace(call, key=(call.key * 2).round() / 2, query=call.query.round()),
    "not a number": lambda call: replace(call, query=call.query.index_fill(2, torch.tensor([5]), torch.nan)),
    "an infinite value": lambda call: replace(
        call, value=call.value.index_fill(2, torch.tensor([99]), torch.inf)
    ),
    "dropout": lambda call: replace(call, dropout=0.3),
    "sinks": lambda call: replace(call, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}
RULES = {
    str(rule): rule
    for rule in (TopK(0.8), TopK(keep=400), TopK(keep=600), TopP(0.6), NofM(2, 16), Threshold(0.3), Entmax())
}


@pytest.mark.parametrize("change", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_long_rows(rule, change: Callable[[Call], Call], monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (
        normal(2, heads, length, width, seed=seed, dtype=torch.float32)
        for seed, (heads, length, width) in enumerate([(4, 70, 32), (2, 1100, 32), (2, 1100, 48)])
    )
    call = change(Call(query, key, value, as_method(rule), 0.25, first_query=1030))
    monkeypatch.setattr(operators, "by_columns", lambda *_: False)
    if call.sinks is not None and isinstance(rule, Entmax):
        pytest.skip("entmax knows no sinks")
    found = results(call)
    monkeypatch.setattr(operators, "LONG", 2**60)
    for one, other in zip(found, results(call), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("keys", "width", "rule", "chunk"),
    [
        (512, 64, TopK(0.8), 0),
        (513, 64, TopK(0.8), 128),
        (2048, 256, TopK(0.8), 64),
        (100_000, 8, TopP(0.5), 1024),
        (2048, 64, TopK(0.5), 0),  # which is multiplied with zeros
        (64, 1024, TopK(0.8), 0),  # wider than long
    ],
)
def test_which_rows_are_long(keys: int, width: int, rule, chunk: int) -> None:
    query, key = torch.zeros(1, 1, 64, width), torch.zeros(1, 1, keys, width)
    plan = Plan(*code_of(rule), False, 1.0, 0.0, 0)
    job = operators.fill(query, key, key, None, None, None, None, plan)
    operators.chunk(job, plan, *operators.CHUNK_BACKWARD)
    assert job["chunk_keys"] == chunk
