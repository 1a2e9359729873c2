"""Masks that are lengths and an order, and those that are more."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crisp_attention import TopK
from crisp_attention.kernels import cpu, dispatch, masks
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import Method
from tests.cases import normal


def call_of(mask: torch.Tensor, queries: int, batch: int, causal: bool = False) -> Call:
    query = normal(batch, 4, queries, 16, dtype=torch.float32)
    key, value = normal(2, batch, 2, mask.shape[-1], 16, seed=1, dtype=torch.float32)
    return Call(query, key, value, Method(rule=TopK(0.6)), scale=0.25, valid=mask, causal=causal)


@settings(deadline=None)
@given(
    queries=st.integers(1, 9),
    more=st.integers(0, 7),
    bounds=st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), min_size=1, max_size=3),
    order=st.sampled_from(["none", "mask", "call", "both"]),
    flipped=st.booleans(),
    data=st.data(),
)
def test_whatever_is_recognised_means_what_the_mask_means(
    queries, more, bounds, order, flipped, data
) -> None:
    keys = queries + more
    place = torch.arange(keys)
    mask = torch.stack([(place >= first) & (place < end) for first, end in bounds])[:, None, None]
    mask = mask.expand(-1, 1, queries, -1)
    if order in ("mask", "both"):
        mask = mask & (place <= torch.arange(queries)[:, None] + data.draw(st.integers(0, more)))
    if flipped:
        mask = mask.clone()
        mask[0, 0, data.draw(st.integers(0, queries - 1)), data.draw(st.integers(0, keys - 1))] ^= True
    call = call_of(mask, queries, len(bounds), causal=order in ("call", "both"))
    found = masks.recognised(call)
    assert found.rows.valid.expand(len(bounds), 1, queries, keys).equal(
        call.rows.valid.expand(len(bounds), 1, queries, keys)
    )
    if not flipped and order in ("none", "call"):
        assert found.valid is None


def test_what_transformers_sends_to_decoders_is_recognised() -> None:
    place = torch.arange(12)
    triangle = place <= place[:5, None] + 7
    left = torch.tensor([0, 8])[:, None, None, None]
    found = masks.recognised(call_of(triangle & (place >= left), 5, 2))
    assert (found.valid, found.causal, found.first_query) == (None, True, 7)
    assert found.span is not None
    assert found.span.tolist() == [[0, 12], [8, 12]]
    static = place < 9  # slots of a cache that are still empty
    found = masks.recognised(call_of(static[None, None, None], 1, 2))
    assert (found.valid, found.causal) == (None, False)
    assert found.span is not None
    assert found.span.tolist() == [[0, 9], [0, 9]]


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, 4, 6, 6, dtype=torch.bool).tril(),  # each head has one of its own
        torch.ones(1, 1, 6, 6, dtype=torch.bool).tril().triu(-2),
        torch.tensor([True, False, True, True, True, False])[None, None, None].expand(1, 1, 6, 6),
        torch.ones(1, 1, 6, 6, dtype=torch.bool).tril(-1),
    ],
    ids=["of heads", "a window", "a hole", "without the own token"],
)
def test_what_is_more_stays_a_mask(mask) -> None:
    call = call_of(mask, 6, 1)
    assert masks.recognised(call) is call


def test_a_mask_that_does_not_fit_stays_to_be_refused() -> None:
    for shape in ((1, 1, 1, 11), (1, 1, 4, 6), (3, 1, 1, 6)):
        call = replace(call_of(torch.ones(1, 1, 6, 6, dtype=torch.bool), 6, 2), valid=torch.ones(shape) > 0)
        assert masks.recognised(call) is call
        with pytest.raises(RuntimeError):
            dispatch.attention(call)


def test_a_mask_is_looked_at_again_once_it_has_changed(monkeypatch) -> None:
    looks = []
    monkeypatch.setattr(masks, "shape_of", lambda *given: looks.append(1) or real(*given))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    call = call_of(mask, 6, 1)
    for _ in range(2):
        assert masks.recognised(call).causal
    assert len(looks) == 1
    mask[..., 0] = False
    assert masks.recognised(call).span.tolist() == [[1, 6]]
    assert len(looks) == 2
    with torch.inference_mode():
        free = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
        assert masks.recognised(replace(call, valid=free)).causal
        free[..., 0] = False
        assert masks.recognised(replace(call, valid=free)).span.tolist() == [[1, 6]]


def test_a_mask_seen_in_inference_can_be_trained_with() -> None:
    call = call_of(torch.arange(6).expand(2, 1, 6, 6) < torch.tensor([6, 4])[:, None, None, None], 6, 2)
    with torch.inference_mode():
        dispatch.attention(call)
    learning = replace(call, query=call.query.clone().requires_grad_())
    dispatch.attention(learning)[0].sum().backward()
    assert learning.query.grad is not None


real = masks.shape_of


def test_the_kernel_gets_no_mask_and_gives_what_the_reference_gives(monkeypatch) -> None:
    given = []
    kernel = cpu.attention
    monkeypatch.setattr(cpu, "attention", lambda call: given.append(call) or kernel(call))
    place = torch.arange(40)
    mask = (place <= place[:, None]) & (place >= torch.tensor([0, 30])[:, None, None, None])
    call = call_of(mask, 40, 2)
    output, _ = dispatch.attention(call)
    assert given[0].valid is None
    torch.testing.assert_close(output, dispatch.attention(call, dispatch.REFERENCE)[0])
