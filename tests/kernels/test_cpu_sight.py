"""Layouts that tell by numbers of tokens which pairs see each other, on the CPU kernel: against float64."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import LSH, BigBird, Entmax, Method, NofM, RandomPairs, Routing, Sparsefinder, TopK
from crisp_attention.kernels import cpu, dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rules import Dense
from tests.kernels.test_cpu_parts import a_call, check

FIXED = st.sampled_from([0, 1, 5, 33]), st.integers(0, 3)
BIRDS = st.builds(
    BigBird,
    st.sampled_from([1, 3, 21]),
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from([1, 2, 16, 40]),
    st.integers(0, 3),
)
HASHED = st.builds(LSH, st.sampled_from([2, 4, 16]), st.integers(1, 3), st.integers(0, 9), *FIXED)
DRAWN = st.builds(RandomPairs, st.integers(1, 9).map(lambda n: n / 10), st.integers(0, 9))
ROUTED = st.builds(Routing, st.just(5), st.integers(1, 4), *FIXED)
CLUSTERED = st.builds(
    Sparsefinder,
    st.just("kmeans"),
    st.just(3),
    st.sampled_from([3, 40]),
    st.integers(1, 2),
    st.integers(1, 2),
)
NEAR = st.builds(
    Sparsefinder,
    st.just("distance"),
    st.just(2),
    threshold=st.sampled_from([0.5, 4.0]),
    shared=st.booleans(),
    window=FIXED[0],
    global_tokens=FIXED[1],
)
QUANTIZED = st.builds(Sparsefinder, st.just("quantize"), st.just(2), bucket_size=st.integers(1, 9))
LAYOUTS = BIRDS | HASHED | DRAWN | ROUTED | CLUSTERED | NEAR
RULES = st.sampled_from([Dense(), Dense(), TopK(0.5), Entmax(), NofM(1, 3)])


@pytest.fixture(autouse=True, scope="module")
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def with_parameters(call: Call) -> Call:
    """Of whole eighths as well, so that distances are the same in every dtype."""
    shape = Shape(call.query.shape[1], call.key.shape[1], call.query.shape[-1])
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randint(-8, 9, each.value.shape, generator=generator) / 8
        for name, each in call.method.parameters(shape).items()
    }
    return replace(call, parameters=drawn)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    LAYOUTS,
    RULES,
    st.integers(1, 120),
    st.integers(0, 60),
    st.sampled_from([8, 16, 64]),
    st.booleans(),
)
def test_it_is_the_reference(layout: Layout, rule, queries: int, more: int, width: int, causal: bool) -> None:
    call = a_call(
        Method(layout, rule), queries, queries + more, width, causal=causal, first_query=more * causal
    )
    assert cpu.lacks(call) is None
    check(with_parameters(call))


@settings(deadline=None, max_examples=10, derandomize=True)
@given(QUANTIZED, RULES, st.integers(1, 120))
def test_so_are_buckets_of_what_is_sorted(layout: Layout, rule, tokens: int) -> None:
    check(with_parameters(a_call(Method(layout, rule), tokens, tokens)))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    LAYOUTS | QUANTIZED,
    RULES,
    st.integers(1, 100),
    st.tuples(*[st.integers(0, 100)] * 4),
    st.sampled_from(["all", "causal", "one new token"]),
)
def test_what_lies_beside_a_span_is_not_even_read(layout: Layout, rule, keys: int, ends, kind: str) -> None:
    """Where padding is NaN, everything is what the reference makes of zeros there, in the rows of real queries."""
    if getattr(layout, "variant", None) == "quantize":
        kind = "all"
    span = torch.tensor(ends).reshape(2, 2).sort(dim=1).values.clamp(max=keys)
    queries = 1 if kind == "one new token" else keys
    call = with_parameters(a_call(Method(layout, rule), queries, keys, causal=kind == "causal", span=span))
    place = torch.arange(keys)
    real = ((place >= span[:, :1]) & (place < span[:, 1:]))[:, None, :, None]
    beside, zeros = (
        [torch.where(real, each, nothing) for each in (call.key, call.value)] for nothing in (torch.nan, 0.0)
    )
    asked = real if queries == keys else torch.ones(2, 1, 1, 1, dtype=torch.bool)
    found, _ = dispatch.attention(replace(call, key=beside[0], value=beside[1]), "cpu")
    wanted, _ = dispatch.attention(
        replace(call, query=call.query.double(), key=zeros[0].double(), value=zeros[1].double()), "reference"
    )
    torch.testing.assert_close(
        torch.where(asked, found, 0.0).double(), torch.where(asked, wanted, 0.0), rtol=1e-5, atol=1e-5
    )


@settings(deadline=None, max_examples=20, derandomize=True)
@given(LAYOUTS, RULES, st.integers(1, 120))
def test_one_new_token_sees_what_the_last_of_all_saw(layout: Layout, rule, keys: int) -> None:
    whole = with_parameters(a_call(Method(layout, rule), keys, keys, causal=True))
    last = replace(whole, query=whole.query[:, :, -1:], causal=False)
    check(last)
    found = dispatch.attention(last, "cpu")[0]
    torch.testing.assert_close(found, dispatch.attention(whole, "cpu")[0][:, :, -1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["query", "key"])
def test_what_is_not_finite_is_seen_by_all(which: str) -> None:
    for layout in (LSH(8), Routing(5), Sparsefinder("distance", rank=2)):
        call = with_parameters(a_call(Method(layout), 50, 50))
        getattr(call, which)[0, 0, 7] = torch.nan
        found, wanted = (
            dispatch.attention(call, backend)[0].isnan().any(dim=-1) for backend in ("cpu", "reference")
        )
        assert found.equal(wanted)
        assert found[0].sum() == (1 if which == "query" else 2 * 50)


@pytest.mark.parametrize("layout", [LSH(4), RandomPairs(0.5)], ids=lambda layout: layout.name)
def test_dropout_repeats_by_its_seed_in_both_passes(layout: Layout) -> None:
    """With unit vectors as values the output is the weights, and shows what was dropped."""
    call = a_call(Method(layout), 64, 64, 64, dropout=0.25)
    leaf = torch.eye(64).expand(2, 2, 64, 64).contiguous().requires_grad_()
    call = replace(call, value=leaf)
    torch.manual_seed(3)
    output, _ = dispatch.attention(call, "cpu")
    _, weights = dispatch.attention(replace(call, dropout=0.0), weights=True)
    assert weights is not None
    stay = output > 0
    torch.testing.assert_close(output[stay], weights[stay] / 0.75, rtol=1e-5, atol=1e-6)
    assert 0.7 < stay.sum() / (weights > 0).sum() < 0.8
    gradient = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    (slope,) = torch.autograd.grad(output, leaf, gradient)
    wanted = (output.transpose(2, 3) @ gradient).unflatten(1, (2, 2)).sum(dim=2)
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-5)


def test_no_pair_of_tokens_is_held() -> None:
    """At 4,096 tokens a mask would be 16 MiB, and scores 64 MiB: neither is allocated."""
    for layout in (BigBird(), LSH(16), RandomPairs(0.9), Sparsefinder("distance", rank=2, threshold=0.01)):
        call = with_parameters(a_call(Method(layout), 4096, 4096))
        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            dispatch.attention(call, "cpu")
        largest = max(event.self_cpu_memory_usage for event in profile.events())
        assert largest < 2**23, layout
