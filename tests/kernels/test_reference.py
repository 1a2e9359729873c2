import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import (
    LSH,
    BigBird,
    BlockTopK,
    Dense,
    Entmax,
    Full,
    Method,
    NofM,
    RandomK,
    RandomPairs,
    SparseLinear,
    Strided,
    Threshold,
    TopK,
    TopKTopP,
    TopP,
    Window,
)
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.method import as_method
from tests import oracle
from tests.cases import SEED, attention, normal, self_attention
from tests.table import METHODS

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)
SCALE = 0.5  # a power of two: with inputs on a grid every score is exact in float32, and so is the selection
MASKS = ("none", "padding", "random", "finfo.min", "-inf", "bias")


TENTHS = st.integers(0, 9).map(lambda n: n / 10)
SHARES = st.builds(TopK, st.integers(0, 99).map(lambda n: n / 100), st.integers(1, 4))
# numbers at which no sum of weights ends by chance
RULES = st.one_of(
    st.just(Dense()),
    SHARES,
    st.builds(TopK, keep=st.integers(1, 6)),
    st.builds(TopP, st.floats(0.05, 0.95)),
    st.builds(TopKTopP, st.sampled_from([0.3, 0.5, 0.9]), mass=st.floats(0.05, 0.95)),
    st.builds(Threshold, st.floats(0.01, 0.99)),
    st.builds(NofM, st.integers(1, 2), st.integers(2, 5)),
    st.builds(Entmax, st.sampled_from([1.0, 1.25, 1.5, 2, 3.0])),
)
# with blocks and groups of one or two, means are exact, and so are their ties
LAYOUTS = st.one_of(
    st.just(Full()),
    st.builds(Window, st.sampled_from([1, 3, 5]), st.integers(0, 2), st.integers(1, 3)),
    st.builds(BlockTopK, TENTHS, st.sampled_from([1, 2]), st.integers(0, 2), st.integers(1, 2)),
    st.builds(BigBird, st.sampled_from([1, 3]), st.integers(0, 1), st.integers(0, 2), st.integers(1, 3)),
    st.builds(Strided, st.integers(1, 4), st.none() | st.integers(1, 3)),
    st.builds(LSH, st.sampled_from([1, 2, 6]), st.integers(1, 2)),
    st.builds(RandomPairs, TENTHS),
)
TEMPERATURES = st.sampled_from([1, 1, 0.5, 2])  # by which exact scores stay exact
METHODS_DRAWN = st.builds(
    lambda layout, rule, temperature: Method(layout, replace(rule, temperature=temperature)),
    LAYOUTS,
    RULES,
    TEMPERATURES,
)
LINEAR = st.builds(
    lambda critical, negligible, *more: SparseLinear(critical / 10, negligible / 10, *more),
    *(st.integers(1, 5), st.integers(0, 5), st.integers(1, 4)),
    *map(st.sampled_from, (["softmax", "elu", "relu"], ["marginal", "all"], ["sum", "alone"])),
)


@st.composite
def problems(draw: st.DrawFn, method: Method | None = None) -> tuple[Method, dict[str, Tensor], dict]:
    """A method, the arguments of `crisp.attention`, and the `valid` and `bias` that its mask stands for."""
    method = draw(METHODS_DRAWN) if method is None else method
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    groups = draw(st.sampled_from([g for g in range(1, heads + 1) if heads % g == 0]))
    keys, width = draw(st.integers(1, 9)), draw(st.integers(1, 8))
    queries = draw(st.integers(1, keys if method.uses_positions else 9))
    dtype, steps = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([1, 8]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def grid(*shape: int) -> Tensor:  # whole numbers (many ties) or eighths (few), exact in every dtype
        return (torch.randint(-3 * steps, 3 * steps + 1, shape, generator=generator) / steps).to(dtype)

    given = {
        "query": grid(batch, heads, queries, width),
        "key": grid(batch, groups, keys, width),
        "value": grid(batch, groups, keys, draw(st.integers(1, 4))),
        "is_causal": draw(st.booleans()),
    }
    kind, bias = draw(st.sampled_from(MASKS)), None
    valid = torch.ones(1, 1, queries, keys, dtype=torch.bool)
    if kind == "padding":
        valid = torch.arange(keys) < torch.randint(0, keys + 1, (batch, 1, 1, 1), generator=generator)
    elif kind != "none":
        valid = torch.rand(batch, heads, queries, keys, generator=generator) < 0.6
    if kind in ("none", "padding", "random"):
        given["attn_mask"] = None if kind == "none" else valid
    else:
        bias = grid(*valid.shape) if kind == "bias" else torch.zeros(valid.shape, dtype=dtype)
        forbidden = -math.inf if kind == "-inf" else torch.finfo(dtype).min
        given["attn_mask"] = bias.masked_fill(~valid, forbidden)
    if given["is_causal"]:
        valid = valid & (torch.arange(keys) <= torch.arange(queries)[:, None])
    return method, given, {"valid": valid, "bias": bias}


def tensors(given: dict) -> tuple[Tensor, Tensor, Tensor]:
    return given["query"], given["key"], given["value"]


@given(problems())
@settings(deadline=None, max_examples=400, derandomize=True)
def test_attention_is_what_the_method_means(problem: tuple) -> None:
    method, given, meaning = problem
    wanted, _ = oracle.attention(*tensors(given), method, scale=SCALE, **meaning)
    output = crisp.attention(**given, method=method, scale=SCALE)
    assert output.dtype == given["query"].dtype
    tolerance = TOLERANCE[output.dtype]
    torch.testing.assert_close(output.double(), wanted, atol=tolerance, rtol=tolerance)


@given(LINEAR.flatmap(problems))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_linear_attention_is_what_it_means(problem: tuple) -> None:
    method, given, meaning = problem
    wanted, _ = oracle.attention(*tensors(given), method, scale=SCALE, **meaning)
    output = crisp.attention(**given, method=method, scale=SCALE)
    tolerance = 4 * TOLERANCE[output.dtype]
    torch.testing.assert_close(output.double(), wanted, atol=tolerance, rtol=tolerance)


@given(problems(Method(rule=RandomK())), SHARES)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_random_keeps_as_many_valid_keys_as_topk(problem: tuple, topk: TopK) -> None:
    _, given, meaning = problem
    given["query"], given["key"] = given["query"].double(), given["key"].double()
    given["value"] = torch.eye(given["key"].shape[2]).double().expand(*given["key"].shape[:2], -1, -1)
    weights = {
        rule.name: crisp.attention(**given, method=rule, scale=SCALE)
        for rule in (topk, RandomK(topk.sparsity, topk.min_keep))
    }
    assert not (weights["random"] > 0).masked_fill(meaning["valid"], False).any()
    assert (weights["random"] > 0).sum(-1).equal((weights["topk"] > 0).sum(-1))


@given(problems(), st.sampled_from([None, 2.0]), st.booleans())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_softcap_and_sinks_are_what_they_mean(problem: tuple, softcap: float | None, sinks: bool) -> None:
    method, given, meaning = problem
    q, k, v = (t.double() for t in tensors(given))
    given_too = {"softcap": softcap, "sinks": normal(q.shape[1]) if sinks else None}
    # unlike the others, tanh is not exact: keep all of what the layout shows
    method = replace(method, rule=Dense()) if softcap else method
    wanted, wanted_weights = oracle.attention(q, k, v, method, scale=SCALE, **meaning, **given_too)
    output, weights = attention(q, k, v, method, scale=SCALE, **meaning, **given_too)
    torch.testing.assert_close(output, wanted, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(weights, wanted_weights, atol=1e-12, rtol=1e-12)


def test_the_largest_scores_are_chosen_after_softcap_and_bias() -> None:
    bias = torch.tensor([0.0, 0.0, 5.0])[None, None, None]
    q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([100.0, 50.0, 1.0])[None, None, :, None], torch.eye(3)
    _, weights = attention(q, k, v[None, None], Method(rule=TopK(0.6)), scale=1, softcap=2.0, bias=bias)
    assert (weights > 0).flatten().tolist() == [True, False, True]  # 2 and 2 tie: the lower index stays


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores_everywhere_average_the_first_k_values(dtype: torch.dtype) -> None:
    value = torch.arange(10.0).reshape(1, 1, 10, 1).to(dtype)
    zeros = torch.zeros(1, 1, 10, 4, dtype=dtype)
    output = crisp.attention(zeros, zeros, value, TopK(0.7))
    torch.testing.assert_close(output, torch.ones_like(output), atol=1e-2, rtol=0)  # of 0, 1 and 2


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_gradients_flow_through_kept_scores_and_no_others(method: Method) -> None:
    q, k, v = self_attention()
    bias = torch.zeros(2, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    seen: list[Observation] = []
    output, weights = attention(q, k, v, method, scale=1.0, bias=bias, seed=SEED, observe=seen.append)
    output.square().sum().backward()
    keep = seen[0].keep
    assert (weights > 0).equal(keep)
    assert (bias.grad[~keep] == 0).all()
    assert (bias.grad[keep & (keep.sum(-1, keepdim=True) > 1)] != 0).all()


def test_a_key_that_nobody_attends_to_has_no_gradient() -> None:
    q, k, v = (t.abs().requires_grad_() for t in self_attention(heads=2))
    low = torch.ones(7, 1, dtype=torch.float64)
    low[4] = -1  # the queries are positive, so key 4 scores lowest everywhere
    output, _ = attention(q, k * low, v, Method(rule=TopK(0.5)), scale=1.0)
    output.square().sum().backward()
    for tensor in (k, v):
        assert (tensor.grad[:, :, 4] == 0).all()
        assert tensor.grad.abs().sum() > 0


def test_dropout_averages_out() -> None:
    q, k, v = self_attention(batch=1, heads=1, groups=1)
    wanted, _ = attention(q, k, v, METHODS["topk"], scale=1.0)
    torch.manual_seed(0)
    many = (t.expand(20_000, -1, -1, -1) for t in (q, k, v))
    output, _ = attention(*many, METHODS["topk"], scale=1.0, dropout=0.3)
    torch.testing.assert_close(output.mean(0, keepdim=True), wanted, atol=0.03, rtol=0)


def test_dropout_drops_its_share_of_the_kept_weights_and_scales_the_rest() -> None:
    q, k, v = self_attention(batch=64)
    _, plain = attention(q, k, v, METHODS["topk"], scale=1.0)
    torch.manual_seed(0)
    _, dropped = attention(q, k, v, METHODS["topk"], scale=1.0, dropout=0.25)
    stay = dropped > 0
    torch.testing.assert_close(dropped[stay], plain[stay] / 0.75)
    assert stay.sum() / (plain > 0).sum() == pytest.approx(0.75, abs=0.03)


def test_dropout_follows_the_global_seed() -> None:
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(attention(*self_attention(), METHODS["topk"], scale=1.0, dropout=0.5)[0])
    assert outputs[0].equal(outputs[1])
    assert not outputs[0].equal(outputs[2])


def test_without_dropout_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    attention(*self_attention(), METHODS["topk"], scale=1.0, dropout=0.0)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize(
    "method",
    [
        TopK(0.6),
        TopK(0.6, temperature=3),
        Entmax(1.5),
        Method(Window(3), Dense()),
        BlockTopK(0.5, block_size=2),
    ],
    ids=str,
)
def test_dense_tokens_see_and_are_seen_and_the_others_are_as_if_alone(method, place) -> None:
    method, text, count = as_method(method), 4, 11
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, text + count, 6, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    dense = slice(0, text) if place == "first" else slice(count, text + count)
    others = slice(text, text + count) if place == "first" else slice(0, count)
    real = torch.ones(2, 1, 1, text + count, dtype=torch.bool)
    real[1, ..., others.stop - 3 : others.stop] = False
    call = Call(query, key, value, method, scale=0.7, valid=real, dense=dense)
    output, weights = dispatch.attention(call, weights=True)

    plain = {"scale": 0.7, "valid": real}
    full = dispatch.attention(Call(query, key, value, Method(), **plain))[0]
    torch.testing.assert_close(output[:, :, dense], full[:, :, dense])
    inner = Call(
        query[:, :, others],
        key[:, :, others],
        value[:, :, others],
        method,
        scale=0.7,
        valid=real[..., others],
    )
    _, alone = dispatch.attention(inner, weights=True)
    queries = real[:, :, 0, others, None]
    if method.rule.zeros_are_dropped:  # of all that it sees, by entmax
        wanted = dispatch.attention(Call(query, key, value, method, **plain))[0][:, :, others]
        torch.testing.assert_close(output[:, :, others] * queries, wanted * queries)
        return
    kept = torch.ones_like(weights[:, :, others], dtype=torch.bool) & real
    kept[..., others] &= alone > 0
    sharper = 3 if method.rule.temperature == 3 else 1
    scores = sharper * 0.7 * query[:, :, others] @ key.mT
    wanted = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ value
    torch.testing.assert_close(output[:, :, others] * queries, wanted * queries)
    with pytest.raises(ValueError, match="lacks tokens that stay dense"):
        dispatch.attention(replace(call, query=query.float(), key=key.float(), value=value.float()), "cpu")
