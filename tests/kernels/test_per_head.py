"""A method for each head gives each head what it would have by itself."""

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
    Entmax,
    Method,
    PerHead,
    RandomK,
    RandomPairs,
    Threshold,
    TopK,
    TopP,
    Window,
)
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.pairs import causal_mask
from tests.cases import SEED, attention, normal, self_attention
from tests.table import METHODS

HEADS, LENGTH = 4, 7
EACH = [*METHODS.values(), Method(rule=RandomK(0.3)), Method(rule=Entmax("learned"))]
LEARNED = {"rule.alpha": torch.tensor([-0.01, 0.0, 0.01, 0.02], dtype=torch.float64)}
VALID = (torch.arange(LENGTH) < torch.tensor([7, 5])[:, None])[:, None, None]


def call(method: Method | PerHead, inputs: tuple[Tensor, ...], **more) -> tuple[Tensor, Tensor]:
    return attention(*inputs, method, scale=0.6, seed=SEED, parameters=LEARNED, **more)


def extras() -> dict[str, Tensor | float]:
    """A bias and a sink of each head, a mask, and a cap."""
    return {
        "bias": normal(1, HEADS, LENGTH, LENGTH, seed=4),
        "sinks": normal(HEADS, seed=5),
        "valid": VALID & causal_mask(LENGTH, LENGTH, torch.device("cpu")),
        "softcap": 3.0,
    }


@given(st.lists(st.sampled_from(EACH), min_size=HEADS, max_size=HEADS), st.booleans())
@settings(deadline=None, max_examples=80, derandomize=True)
def test_each_head_has_the_output_and_weights_of_its_own_method(methods: list[Method], more: bool) -> None:
    inputs, given_too = self_attention(), extras() if more else {}
    seen: list[Observation] = []
    output, weights = call(PerHead(tuple(methods)), inputs, observe=seen.append, **given_too)
    for head, method in enumerate(methods):
        one: list[Observation] = []
        wanted, wanted_weights = call(method, inputs, observe=one.append, **given_too)
        torch.testing.assert_close(output[:, head], wanted[:, head], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights[:, head], wanted_weights[:, head], rtol=1e-12, atol=1e-12)
        assert seen[0].keep[:, head].equal(one[0].keep[:, head])


def test_a_head_draws_the_same_keys_whatever_the_others_do() -> None:
    random, other = Method(rule=RandomK(0.5)), Method(rule=TopK(0.5))
    drawn = call(random, self_attention())[1]
    for at in range(HEADS):
        methods = [other] * HEADS
        methods[at] = random
        assert call(PerHead(tuple(methods)), self_attention())[1][:, at].equal(drawn[:, at])
    assert not drawn[:, 0].equal(drawn[:, 1])


@pytest.mark.parametrize("layout", [BigBird(1), LSH(4), RandomPairs(0.7)], ids=str)
def test_what_a_layout_draws_for_a_head_does_not_depend_on_the_kernels_of_the_others(layout) -> None:
    inputs = [normal(1, HEADS, 48, 16, seed=seed, dtype=torch.float32) for seed in range(3)]
    top, drawing = Method(rule=TopK(0.5)), Method(layout)
    wanted = crisp.attention(*inputs, drawing)
    for methods in ((top, drawing, top, drawing), (top, top, drawing, top)):
        output = crisp.attention(*inputs, PerHead(methods))
        for head in (each for each, method in enumerate(methods) if method is drawing):
            torch.testing.assert_close(output[:, head], wanted[:, head])


def test_heads_of_a_group_of_keys_may_differ() -> None:
    """Query heads 0 and 1 share a key head, and so do 2 and 3."""
    q, k, v = self_attention(heads=4, groups=2)
    methods = (TopK(0.5), TopP(0.5), Threshold(0.5), TopK(0.5))
    output, _ = call(PerHead(tuple(Method(rule=rule) for rule in methods)), (q, k, v))
    for head, rule in enumerate(methods):
        alone = (q[:, head : head + 1], k[:, head // 2, None], v[:, head // 2, None])
        wanted, _ = attention(*alone, Method(rule=rule), scale=0.6)
        torch.testing.assert_close(output[:, head : head + 1], wanted, rtol=1e-12, atol=1e-12)


def test_a_mask_of_each_head_stays_with_its_head() -> None:
    methods = (Method(Window(3)), Method(rule=TopK(0.5)), Method(Window(3)), Method(BlockTopK(0.5, 2)))
    valid = torch.rand(2, HEADS, LENGTH, LENGTH) < 0.7
    output, _ = call(PerHead(methods), self_attention(), valid=valid)
    for head, method in enumerate(methods):
        wanted, _ = call(method, self_attention(), valid=valid)
        torch.testing.assert_close(output[:, head], wanted[:, head], rtol=1e-12, atol=1e-12)


def test_gradients_are_right() -> None:
    methods = tuple(Method(rule=rule) for rule in (TopK(0.5), Entmax("learned"), TopK(0.5), Entmax(1.5)))
    inputs = self_attention(batch=1, length=4)
    alpha = LEARNED["rule.alpha"].clone().requires_grad_()

    def output(q: Tensor, k: Tensor, v: Tensor, learned: Tensor) -> Tensor:
        return attention(q, k, v, PerHead(methods), scale=0.7, parameters={"rule.alpha": learned})[0]

    assert torch.autograd.gradcheck(output, [*(t.requires_grad_() for t in inputs), alpha], fast_mode=True)
    output(*inputs, alpha).square().sum().backward()
    assert [bool(slope) for slope in alpha.grad] == [False, True, False, False]


@pytest.mark.parametrize("extra", [{}, {"dropout": 0.5}], ids=str)
def test_a_row_without_a_valid_key_gives_zeros(extra: dict) -> None:
    valid = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    valid[1, :, 2] = False
    method = PerHead(tuple(METHODS[name] for name in ("topk", "entmax", "window", "topp")))
    output, _ = call(method, self_attention(), valid=valid, **extra)
    assert (output[1, :, 2] == 0).all()
    assert output.isfinite().all()
