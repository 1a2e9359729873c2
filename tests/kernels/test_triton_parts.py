"""Bands, and blocks that single queries choose, on the Triton kernel. Without a GPU, Triton's interpreter runs it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention import BlockTopK, Method, Strided, Window
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.layouts import Layout
from tests.kernels.test_cpu_parts import a_call, results

pytest.importorskip("triton.language", reason="triton is not installed; it is for Linux only")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of the interpreter
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPANS = [None, [[0, 40], [9, 90]], [[3, 90], [70, 71]]]
BANDS = [Window(3), Window(65, 2), Window(21, 1, 3), Strided(5, None), Strided(7, 20)]
CHOICES = [BlockTopK(0.6, 16), BlockTopK(0.5, 16, 1, 0), BlockTopK(0.3, 32, 0, 2)]


def on_device(call: Call) -> Call:
    moved = {
        name: each.to(DEVICE)
        for name in ("query", "key", "value", "span")
        if (each := getattr(call, name)) is not None
    }
    return Call(**{**vars(call), **moved})


def real(call: Call) -> Tensor:
    """Queries that are real tokens, (B, 1, L, 1)."""
    place = torch.arange(call.query.shape[2]) + call.first_query
    if call.span is None:
        return torch.ones(1, 1, len(place), 1, dtype=torch.bool)
    return ((place >= call.span[:, :1]) & (place < call.span[:, 1:]))[:, None, :, None]


def check(layout: Layout, length: int, causal: bool, spans, first: int = 0) -> None:
    span = None if spans is None else torch.tensor(spans).clamp(max=length).int()
    call = a_call(Method(layout), length - first, length, 16, causal=causal, span=span, first_query=first)
    assert dispatch.lacks("triton_blocks", on_device(call)) is None
    inside = real(call)
    ours = results(on_device(call), "triton_blocks", torch.float32)
    exact = results(call, "reference", torch.float64)
    torch.testing.assert_close(
        ours[0].double().cpu() * inside,
        exact[0] * inside,
        rtol=1e-5,
        atol=2e-6 * float(exact[0].abs().max() + 1),
    )
    if bool(inside.all()):  # the gradients are those of all queries
        for one, other in zip(ours[1:], exact[1:], strict=True):
            torch.testing.assert_close(
                one.double().cpu(), other, rtol=1e-5, atol=4e-6 * float(other.abs().max() + 1)
            )


@pytest.mark.parametrize("layout", BANDS + CHOICES, ids=repr)
@pytest.mark.parametrize("spans", SPANS)
def test_causal(layout: Layout, spans) -> None:
    check(layout, 90, True, spans)


@pytest.mark.parametrize("layout", BANDS, ids=repr)
@pytest.mark.parametrize("spans", SPANS)
def test_not_causal(layout: Layout, spans) -> None:
    check(layout, 90, False, spans)


@pytest.mark.parametrize("layout", BANDS + CHOICES, ids=repr)
@pytest.mark.parametrize("first", [1, 70, 149])
def test_after_keys_of_a_cache(layout: Layout, first: int) -> None:
    check(layout, 150, True, None, first)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.builds(Window, st.sampled_from([1, 9, 33, 129]), st.integers(0, 20), st.integers(1, 3)),
    st.integers(1, 200),
    st.booleans(),
    st.integers(0, 30),
)
def test_bands_of_any_numbers(layout: Layout, length: int, causal: bool, first: int) -> None:
    check(layout, length, causal, None, min(first, length - 1) * causal)
