"""Bands, and blocks that single queries choose, on the CPU kernel: outputs and gradients against float64."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention import BlockTopK, Entmax, Method, NofM, Strided, TopK, Window
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.rules import Dense

WINDOWS = st.builds(Window, st.sampled_from([1, 3, 21, 65, 129]), st.integers(0, 3), st.integers(1, 4))
STRIDED = st.builds(Strided, st.integers(2, 9), st.sampled_from([None, 1, 20]))
BANDS = WINDOWS | STRIDED
CHOICES = st.builds(
    BlockTopK,
    st.integers(0, 9).map(lambda n: n / 10),
    st.sampled_from([16, 32, 64]),
    st.integers(0, 2),
    st.integers(0, 2),
)
RULES = st.sampled_from([Dense(), Dense(), TopK(0.5), Entmax(), NofM(1, 3)])


@pytest.fixture(autouse=True, scope="module")
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def a_call(method: Method, queries: int, keys: int, width: int = 16, seed: int = 0, **more) -> Call:
    """Whole eighths, so that scores, and what is kept of them, are the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def eighths(*shape: int) -> Tensor:
        return torch.randint(-16, 17, shape, generator=generator) / 8

    query, key, value = eighths(2, 4, queries, width), eighths(2, 2, keys, width), eighths(2, 2, keys, width)
    return Call(query, key, value, method, scale=0.25, **more)


def results(call: Call, backend: str, dtype: torch.dtype) -> list[Tensor]:
    leaves = [each.to(dtype).requires_grad_() for each in (call.query, call.key, call.value)]
    given = replace(call, query=leaves[0], key=leaves[1], value=leaves[2])
    output, _ = dispatch.attention(given, backend)
    slopes = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, slopes)]


def check(call: Call) -> None:
    for ours, right in zip(
        results(call, "cpu", torch.float32), results(call, "reference", torch.float64), strict=True
    ):
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=2e-6 * float(right.abs().max() + 1))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    BANDS | CHOICES,
    RULES,
    st.integers(1, 150),
    st.integers(0, 70),
    st.sampled_from([8, 16, 24, 64]),
    st.booleans(),
)
def test_it_is_the_reference(layout: Layout, rule, queries: int, more: int, width: int, causal: bool) -> None:
    check(a_call(Method(layout, rule), queries, queries + more * causal, width, causal=causal))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    BANDS | CHOICES,
    RULES,
    st.integers(1, 120),
    st.tuples(*[st.integers(0, 120)] * 4),
    st.sampled_from(["all", "causal", "one new token"]),
)
def test_what_lies_beside_a_span_is_not_even_read(layout: Layout, rule, keys: int, ends, kind: str) -> None:
    """Where padding is NaN, everything is what the reference makes of zeros there, in the rows of real queries."""
    span = torch.tensor(ends).reshape(2, 2).sort(dim=1).values.clamp(max=keys)
    call = a_call(Method(layout, rule), 1 if kind == "one new token" else keys, keys, causal=kind == "causal")
    place = torch.arange(keys)
    real = ((place >= span[:, :1]) & (place < span[:, 1:]))[:, None, :, None]
    beside, zeros = (
        [torch.where(real, each, nothing) for each in (call.key, call.value)] for nothing in (torch.nan, 0.0)
    )
    asked = real if call.query.shape[2] == keys else torch.ones(2, 1, 1, 1, dtype=torch.bool)
    found, _ = dispatch.attention(replace(call, key=beside[0], value=beside[1], span=span), "cpu")
    given = [each.double() for each in (call.query, *zeros)]
    wanted, _ = dispatch.attention(
        replace(call, query=given[0], key=given[1], value=given[2], span=span), "reference"
    )
    torch.testing.assert_close(
        torch.where(asked, found, 0.0).double(), torch.where(asked, wanted, 0.0), rtol=1e-5, atol=1e-5
    )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(BANDS | CHOICES, RULES, st.integers(1, 150))
def test_one_new_token_sees_what_the_last_of_all_saw(layout: Layout, rule, keys: int) -> None:
    whole = a_call(Method(layout, rule), keys, keys, causal=True)
    last = replace(whole, query=whole.query[:, :, -1:], causal=False)
    check(last)
    found = dispatch.attention(last, "cpu")[0]
    torch.testing.assert_close(found, dispatch.attention(whole, "cpu")[0][:, :, -1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", [3, 40, 99])
@pytest.mark.parametrize("which", ["query", "key"])
@pytest.mark.parametrize("size", [16, 64])
def test_a_query_that_ranks_what_is_not_finite_keeps_all_its_blocks(
    size: int, which: str, place: int
) -> None:
    call = a_call(Method(BlockTopK(0.9, size)), 100, 100, causal=True)
    getattr(call, which)[0, 0, place] = torch.nan
    found, wanted = (
        dispatch.attention(call, backend)[0].isnan().any(dim=-1) for backend in ("cpu", "reference")
    )
    first = torch.arange(100) >= place  # in the reference NaN reaches the rows before it too
    assert found.equal(wanted & first)
    assert found[0].any()


@pytest.mark.parametrize(
    "layout", [Window(33), Window(9, global_tokens=2), BlockTopK(0.5, 16)], ids=lambda layout: layout.name
)
def test_dropout_repeats_by_its_seed_in_both_passes(layout: Layout) -> None:
    """With unit vectors as values the output is the weights, and shows what was dropped."""
    call = a_call(Method(layout), 64, 64, 64, causal=True, dropout=0.25)
    call = replace(call, value=torch.eye(64).expand(2, 2, 64, 64).contiguous())
    torch.manual_seed(3)
    output, *slopes = results(call, "cpu", torch.float32)
    _, weights = dispatch.attention(replace(call, dropout=0.0), weights=True)
    assert weights is not None
    stay = output > 0
    torch.testing.assert_close(output[stay], weights[stay] / 0.75, rtol=1e-5, atol=1e-6)
    assert 0.7 < stay.sum() / (weights > 0).sum() < 0.8
    gradient = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    wanted = (output.transpose(2, 3) @ gradient).unflatten(1, (2, 2)).sum(dim=2)
    torch.testing.assert_close(slopes[2], wanted, rtol=1e-4, atol=1e-5)


def test_no_pair_of_tokens_is_held() -> None:
    """At 4,096 tokens a mask would be 16 MiB, and scores 64 MiB: neither is allocated."""
    for layout in (Window(129), BlockTopK(0.9)):
        call = a_call(Method(layout), 4096, 4096, causal=True)
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            dispatch.attention(call, "cpu")
        largest = max(event.self_cpu_memory_usage for event in profile.events())
        assert largest < 2**23, layout
