"""The backward pass by columns gives what the one row by row does."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from crisp_attention import Threshold, TopK, TopP
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import operators
from crisp_attention.kernels.cpu.plan import TOPK
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
    "a span behind the keys": lambda call: replace(call, span=torch.tensor([[305, 310], [0, 300]])),
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
@pytest.mark.parametrize(("columns", "chunks"), [(96, 2), (512, 1)])
def test_as_row_by_row(rule, change, columns: int, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`chunks` are parts of the queries, with sums of their own."""
    query, key, value = (
        normal(2, heads, length, width, seed=seed, dtype=torch.float32)
        for seed, (heads, length, width) in enumerate([(4, 150, 24), (2, 300, 24), (2, 300, 112)])
    )
    call = change(Call(query, key, value, as_method(rule), 0.25, first_query=150))
    monkeypatch.setattr(operators, "COLUMNS", columns)
    monkeypatch.setattr(operators, "_chunks", lambda _: chunks)
    found = results(call)
    monkeypatch.setattr(operators, "by_columns", lambda *_: False)
    for one, other in zip(found, results(call), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5, equal_nan=True)


def test_a_single_key_that_is_kept_has_no_gradient_to_rounding() -> None:
    query, key, value = (normal(1, 2, 200, 40, seed=seed, dtype=torch.float32) for seed in range(3))
    _, to_query, to_key, _ = results(Call(query, key, value, as_method(TopK(keep=1)), 0.25))
    assert not to_query.any()
    assert not to_key.any()


@pytest.mark.parametrize("width", [7, 24, 48])
def test_the_operator_itself_takes_values_of_any_width(width: int) -> None:
    states = [normal(2, 2, 140, size, seed=size, dtype=torch.float32) for size in (24, 25, width)]
    states[1] = states[1][..., :24]
    grads = []
    for dtype in (torch.float32, torch.float64):
        query, key, value = (each.to(dtype).requires_grad_() for each in states)
        if dtype == torch.float32:
            none, seed = (None,) * 4, torch.zeros((), dtype=torch.int64)
            numbers = 0.8, 1.0, 1, 0, False, 0, 0.25, 0.0, 0.0
            output = operators.rows(query, key, value, *none, seed, None, TOPK, *numbers)[0]
        else:
            output, _ = dispatch.attention(Call(query, key, value, as_method(TopK(0.8)), 0.25), "reference")
        along = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
        grads.append(torch.autograd.grad(output, (query, key, value), along))
    for ours, right in zip(*grads, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-4, atol=1e-5)


def test_outputs_are_kept_where_they_are_needed() -> None:
    def saved(rule) -> int:
        query = normal(1, 2, 140, 16, seed=0, dtype=torch.float32).requires_grad_()
        call = Call(query, query, query, as_method(rule), 0.25)
        shapes: list[torch.Size] = []

        def note(each: torch.Tensor) -> torch.Tensor:
            shapes.append(each.shape)
            return each

        with torch.autograd.graph.saved_tensors_hooks(note, note):
            dispatch.attention(call, "cpu")
        return sum(shape == query.shape for shape in shapes)

    assert saved(TopK(0.8)) == saved(TopK(0.5)) + 1


def test_with_more_threads_than_tiles_rows_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    launch = operators.gradients
    monkeypatch.setattr(
        operators, "gradients", lambda name, *given: used.append(name) or launch(name, *given)
    )
    for heads, threads in ((8, 8), (1, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        query = normal(1, heads, 100, 16, seed=0, dtype=torch.float32)
        results(Call(query, query, query, as_method(TopK(0.8)), 0.25))
    assert used == ["columns", "backward"]
