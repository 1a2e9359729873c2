"""Which kernel gets a call: the fastest that lacks nothing, the one asked for, or an error that says why not."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, Method, PerHead, RandomK, TopK, TopP, Window
from crisp_attention.kernels import dispatch, reference, registry
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.recording import recording
from crisp_attention.kernels.registry import Fastest, Kernel
from tests.cases import normal, self_attention


class Counting:
    """A kernel that does some rules on a few keys, by the reference, and counts its calls."""

    def __init__(self, keys: int, *rules: type) -> None:
        self.keys, self.rules, self.calls = keys, rules, []

    def lacks(self, call: Call) -> str | None:
        if not (isinstance(call.method, Method) and isinstance(call.method.rule, self.rules)):
            return f"the method {call.method.name}"
        return None if call.key.shape[2] <= self.keys else "long calls"

    def attention(self, call: Call) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")
        assert call.query.dtype == call.key.dtype == call.value.dtype
        self.calls.append(call)
        return reference.attention(call)[0]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two kernels and no others: `quick` for short calls, `broad` for the rest, neither for very long ones."""
    quick, broad = Counting(8, TopK), Counting(20, TopK, TopP, Dense)
    known = {
        "quick": Kernel(lambda: quick),
        "broad": Kernel(lambda: broad),
        "absent": Kernel(lambda: pytest.fail("imported"), absent="a_library"),
    }
    monkeypatch.setattr(dispatch, "KERNELS", known)
    rows = (
        Fastest("absent", device="cpu"),
        Fastest("quick", device="cpu"),
        Fastest("broad", device="cpu"),
        Fastest("not in the tree", device="cpu"),
        Fastest("broad", device="cuda"),
    )
    monkeypatch.setattr(registry, "FASTEST", rows)
    return SimpleNamespace(quick=quick, broad=broad)


def call(method: object, length: int = 7, dtype: torch.dtype = torch.float32, **more) -> Call:
    per_head = isinstance(method, PerHead)
    inputs = self_attention(length=length, dtype=dtype)
    return Call(*inputs, method if per_head else Method(rule=method), scale=1.0, **more)


@pytest.mark.parametrize(
    ("given", "kernel"),
    [
        (call(TopK(0.5)), "quick"),
        (call(TopK(0.5), length=9), "broad"),
        (call(TopP(0.5)), "broad"),
        (call(TopK(0.5), length=21), "reference"),
        (call(TopK(0.5), dtype=torch.bfloat16), "quick"),
        (call(Entmax()), "reference"),
        (call(TopK(0.5), dtype=torch.float64), "reference"),
    ],
    ids=str,
)
def test_auto_takes_the_first_row_that_covers_a_call_and_can_do_it(kernels, given, kernel) -> None:
    assert [part.kernel for part in dispatch.plan(given)] == [kernel]
    output, weights = dispatch.attention(given)
    torch.testing.assert_close(output, reference.attention(given)[0])
    assert weights is None
    assert len(kernels.quick.calls) + len(kernels.broad.calls) == (kernel != "reference")


@pytest.mark.parametrize(
    ("given", "backend", "lacking"),
    [
        (call(Entmax()), "quick", "the method entmax"),
        (call(TopK(0.5), dtype=torch.float64), "quick", "float64"),
        (call(TopK(0.5)), "absent", "a_library, which is not installed"),
    ],
    ids=str,
)
def test_a_backend_that_cannot_do_the_call_says_what_it_lacks(kernels, given, backend, lacking) -> None:
    with pytest.raises(ValueError, match=f"backend '{backend}' cannot compute this call .* lacks {lacking};"):
        dispatch.attention(given, backend)


def test_a_backend_that_was_asked_for_is_taken_where_another_was_measured_faster(kernels) -> None:
    assert [part.kernel for part in dispatch.plan(call(TopK(0.5)), "broad")] == ["broad"]
    assert [part.kernel for part in dispatch.plan(call(TopK(0.5)), "reference")] == ["reference"]


def test_an_unknown_backend_lists_the_known(kernels) -> None:
    message = "backend must be one of auto, quick, broad, absent, reference, got 'fast'"
    with pytest.raises(ValueError, match=message):
        crisp.attention(*self_attention(), TopK(0.5), backend="fast")


@pytest.mark.parametrize("backend", ["auto", "quick"])
def test_who_looks_at_scores_or_weights_gets_the_reference(kernels, backend) -> None:
    seen: list[reference.Observation] = []
    output, weights = dispatch.attention(call(TopK(0.5)), backend, weights=True)
    again, none = dispatch.attention(call(TopK(0.5)), backend, observe=seen.append)
    assert weights.shape == (2, 4, 7, 7)
    assert none is None
    assert len(seen) == 1
    assert again.equal(output)
    assert not kernels.quick.calls


def test_transforms_of_functions_get_the_reference(kernels) -> None:
    q, k, v = self_attention(dtype=torch.float32)

    def attend(query: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        return crisp.attention(query[None], k[:1], v[:1], TopK(0.5), backend=backend)[0]

    torch.testing.assert_close(torch.vmap(attend)(q)[0], attend(q[0]))
    assert len(kernels.quick.calls) == 1
    with pytest.raises(ValueError, match=r"torch\.func transforms"):
        torch.vmap(lambda query: attend(query, "quick"))(q)


HEADS = (Method(rule=TopK(0.5)), Method(rule=TopP(0.5)), Method(rule=Entmax()), Method(rule=TopK(0.5)))


def test_each_group_of_heads_has_its_own_kernel(kernels) -> None:
    given = call(
        PerHead(HEADS),
        bias=normal(1, 4, 7, 7, seed=4, dtype=torch.float32),
        sinks=normal(4, seed=5, dtype=torch.float32),
        valid=torch.rand(2, 4, 7, 7) < 0.7,
        causal=True,
    )
    parts = dispatch.plan(given)
    assert [(part.heads, part.kernel) for part in parts] == [
        ([0, 3], "quick"),
        ([1], "broad"),
        ([2], "reference"),
    ]
    torch.testing.assert_close(dispatch.attention(given)[0], reference.attention(given)[0])
    assert len(kernels.quick.calls) == len(kernels.broad.calls) == 1
    with pytest.raises(ValueError, match="lacks the method entmax"):
        dispatch.attention(given, "broad")


@pytest.mark.parametrize(
    "methods",
    [
        (Method(rule=Entmax()), Method(BlockTopK(0.5, 2), Entmax()), *[Method(Window(3), Entmax())] * 2),
        (*HEADS[:3], Method(rule=RandomK(0.5))),  # which draws by the number of a head
    ],
    ids=["none has a kernel", "one draws"],
)
def test_heads_stay_together_where_that_is_better(kernels, methods) -> None:
    given = call(PerHead(methods), seed=torch.tensor(3))
    assert [(part.heads, part.kernel) for part in dispatch.plan(given)] == [(None, "reference")]


def test_inputs_of_several_dtypes_reach_a_kernel_in_the_widest(kernels) -> None:
    given = call(TopK(0.5))
    mixed = Call(given.query, given.key, given.value.bfloat16(), given.method, scale=1.0)
    output, _ = dispatch.attention(mixed)
    assert output.dtype == torch.bfloat16
    assert len(kernels.quick.calls) == 1
    torch.testing.assert_close(output, reference.attention(mixed)[0], rtol=0.02, atol=0.02)


def test_autocast_does_not_reach_into_a_kernel(kernels) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = crisp.attention(*self_attention(dtype=torch.float32), TopK(0.5))
    assert output.dtype == torch.float32
    assert len(kernels.quick.calls) == 1


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used() -> None:
    script = (
        "import sys, torch, crisp_attention as crisp; from crisp_attention.kernels import dispatch;"
        "crisp.attention(*[torch.ones(1, 1, 3, 2, dtype=torch.float64)] * 3, crisp.TopK(0.5));"
        "print([m for m in sys.modules if m in ('numba', 'triton') or m.startswith('crisp_attention.kernels.cpu')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_recording_names_the_kernels_that_computed(kernels):
    with recording() as outer:
        dispatch.attention(call(TopK(0.5)))
        with recording() as inner:
            dispatch.attention(call(Entmax(1.5)))
            dispatch.attention(
                call(TopK(0.5)), observe=lambda seen: None
            )  # a measurement, not the model's call
        dispatch.attention(call(TopP(0.5), length=15))
        dispatch.attention(call(TopK(0.5)), weights=True)
    dispatch.attention(call(TopK(0.5)))
    assert outer == {"quick", "broad", "reference"}
    assert inner == {"reference"}
