"""A call like an earlier one is computed by that one's record, and is what it would be without."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import crisp_attention as crisp
from crisp_attention.kernels import dispatch, replay
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.recording import recording
from crisp_attention.methods.band import Band
from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.method import as_method
from crisp_attention.methods.rows import Rows
from crisp_attention.testing.calls import CASES, METHODS, Case
from tests.cases import normal

REPLAYED = {
    "top-k": crisp.TopK(0.8),
    "top-k, keys counted": crisp.TopK(keep=4),
    "top-p": crisp.TopP(0.7),
    "entmax": crisp.Entmax(),
    "2:4": crisp.NofM(2, 4),
    "blocks": crisp.BlockTopK(0.5, block_size=16),
    "window": crisp.Window(33),
}


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replay, "_replays", {})
    torch.use_deterministic_algorithms(True, warn_only=True)  # and uninitialised memory is NaN
    yield
    torch.use_deterministic_algorithms(False)


def decoding(method: object, keys: int = 100, seed: int = 0, width: int = 32) -> Call:
    query = normal(2, 4, 1, width, seed=seed, dtype=torch.float32)
    key, value = (normal(2, 2, keys, width, seed=seed + at, dtype=torch.float32) for at in (1, 2))
    return Call(query, key, value, as_method(method), width**-0.5)


def heads_innermost(call: Call, width: int) -> Call:
    """The call with narrower states, of whose rows no two numbers lie side by side."""
    query, key, value = (
        each[..., :width].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for each in (call.query, call.key, call.value)
    )
    return replace(call, query=query, key=key, value=value)


def output(call: Call) -> torch.Tensor:
    return dispatch.attention(call)[0]


def remembered() -> int:
    return sum(record is not None for record in replay._replays.values())


@pytest.mark.parametrize("method", REPLAYED.values(), ids=REPLAYED)
@pytest.mark.parametrize("width", [32, 40, 7])
def test_the_second_token_needs_no_plan(method, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = decoding(method, width=width), decoding(method, seed=7, width=width)
    output(first)
    assert remembered() == 1
    wanted = dispatch.attention(second, dispatch.REFERENCE)[0]
    monkeypatch.setattr(dispatch, "plan", None)
    with recording() as used:
        torch.testing.assert_close(output(second), wanted)
    assert used == {"cpu"}


@pytest.mark.parametrize("width", [24, 32])
def test_states_with_heads_innermost(width: int) -> None:
    for seed in range(2):
        call = heads_innermost(decoding(crisp.TopK(0.8), seed=seed), width)
        torch.testing.assert_close(output(call), dispatch.attention(call, dispatch.REFERENCE)[0])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_second_call_of_any_kind_is_as_good_as_the_first(case: Case) -> None:
    case = replace(case, width=16)
    for name, method in METHODS.items():
        if case.fits(method) and not (method.has_branch or "sparsefinder" in name):
            call = case.call(method)
            other = replace(call, query=-call.query, value=call.value.flip(-2))
            output(call)
            second = output(other)
            replay.forget()
            assert second.equal(output(other)), name


def test_most_kinds_of_plain_calls_are_replayed() -> None:
    served = {}
    for name, method in METHODS.items():
        replay.forget()
        if not (method.has_branch or "sparsefinder" in name):
            output(Case(1, 77, width=16).call(method))
            served[name] = remembered()
    by_rules = {"topk", "topk, 4", "topk, sharper", "topp", "threshold", "nofm", "entmax", "sparsemax"}
    assert {name for name, number in served.items() if number} >= by_rules | {"window", "block_topk, 16"}


OTHERS: dict[str, Callable[[Call], Call]] = {
    "a gradient": lambda call: replace(call, query=call.query.clone().requires_grad_()),
    "a mask": lambda call: replace(call, valid=torch.arange(100).view(1, 1, 1, 100) % 7 != 3),
    "valid keys": lambda call: replace(call, span=torch.tensor([[0, 60], [5, 100]])),
    "a bias": lambda call: replace(call, bias=torch.linspace(-1, 1, 100).view(1, 1, 1, 100)),
    "sinks": lambda call: replace(call, sinks=torch.zeros(4)),
    "dropout": lambda call: replace(call, dropout=0.5),
    "half precision": lambda call: replace(
        call, query=call.query.half(), key=call.key.half(), value=call.value.half()
    ),
    "keys that are copied": lambda call: replace(call, key=call.key.mT.contiguous().mT),
    "a branch": lambda call: replace(call, method=crisp.SparseLinear(0.5, 0.2, 16, combine="sum")),
    "random keys": lambda call: replace(call, method=as_method(crisp.RandomK(0.5)), seed=torch.tensor(3)),
    "a length that is all kept": lambda call: decoding(crisp.TopK(keep=200)),
    "lists of blocks": lambda call: replace(call, method=as_method(crisp.BigBird(17, block_size=16))),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_more_decides_on_is_planned_every_time(change: Callable[[Call], Call]) -> None:
    call = change(decoding(crisp.TopK(0.8)))
    exact = dispatch.attention(replace(call, dropout=0.0), dispatch.REFERENCE)[0]
    for _ in range(2):
        found = output(call)
        assert call.dropout or torch.allclose(found, exact, atol=1e-3)
    assert remembered() == 0


def test_what_differs_is_of_another_kind() -> None:
    call = decoding(crisp.TopK(0.8))
    others = [
        call,
        decoding(crisp.TopK(0.7)),
        decoding(crisp.TopK(0.8), keys=101),
        replace(call, scale=2.0),
        replace(call, softcap=5.0),
        replace(call, causal=True),
        replace(call, causal=True, first_query=99),
        replace(call, key=call.key.transpose(1, 2).contiguous().transpose(1, 2)),
    ]
    for each in [*others, *others]:
        torch.testing.assert_close(output(each), dispatch.attention(each, dispatch.REFERENCE)[0])
    assert remembered() == len(others)


class Attention(torch.nn.Module):
    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return crisp.attention(query, key, value, crisp.TopK(0.8))


def test_no_kind_where_torch_looks_on() -> None:
    call = decoding(crisp.TopK(0.8))
    output(call)
    wanted = dispatch.attention(call, dispatch.REFERENCE)[0]
    with FlopCounterMode(display=False):
        assert replay.kind_of(call, "auto") is None
        torch.testing.assert_close(output(call), wanted)
    program = torch.export.export(Attention(), (call.query, call.key, call.value)).module()
    torch.testing.assert_close(program(call.query, call.key, call.value), wanted)
    mapped = torch.func.vmap(lambda query: output(replace(call, query=query)))
    torch.testing.assert_close(mapped(call.query[None])[0], wanted)


def test_threads_have_memory_of_their_own() -> None:
    calls = [decoding(crisp.TopK(0.8), keys=400, seed=seed) for seed in range(40)]
    wanted = [output(each) for each in calls]
    with ThreadPoolExecutor(4) as pool:
        assert all(a.equal(b) for a, b in zip(pool.map(output, calls), wanted, strict=True))


@dataclass(frozen=True)
class ByKeys(Layout):
    """A window whose width goes by the size of keys."""

    uses_positions: ClassVar[bool] = True

    def band(self, rows: Rows) -> Band:
        return Band(2 if rows.key.abs().mean() < 1 else 20, 1)

    def visible(self, rows: Rows) -> torch.Tensor:
        return rows.valid & self.band(rows).pairs(rows.query_positions, rows.key_positions)

    def blocks(self, rows: Rows) -> BlockGraph | None:
        return BlockGraph.of_band(rows, self.band(rows))


def test_a_layout_of_someone_s_own_may_go_by_anything() -> None:
    call = decoding(ByKeys())
    for given in (call, replace(call, key=3 * call.key)):
        torch.testing.assert_close(output(given), dispatch.attention(given, dispatch.REFERENCE)[0])
    assert remembered() == 0


def test_a_scale_in_a_tensor_is_read_every_time() -> None:
    scale = torch.tensor(0.25)
    call = replace(decoding(crisp.TopK(0.8)), scale=scale)
    output(call)
    scale.mul_(4)
    torch.testing.assert_close(output(call), output(replace(call, scale=1.0)))


def test_records_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST", 3)
    for keys in range(20, 30):
        output(decoding(crisp.TopK(0.8), keys=keys))
    assert len(replay._replays) <= 3
