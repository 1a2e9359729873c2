"""What a call says by `span` and `first_query` is what a mask says."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import Method
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import TopK
from crisp_attention.testing.calls import CASES, METHODS
from tests.cases import normal

NOT_CAUSAL = {"sparsefinder, quantize", "sparsefinder, blocks"}
SPANS = {name: case for name, case in CASES.items() if "spans" in name or "later" in name}


def in_a_mask(call: Call) -> Call:
    """The same call by a mask alone, pair by pair."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    pairs = [
        [[first <= j < end and (not call.causal or j <= i + call.first_query) for j in range(keys)]
         for i in range(queries)]
        for first, end in call.span.tolist()
    ]  # fmt: skip
    return replace(call, valid=torch.tensor(pairs)[:, None], causal=False, first_query=0, span=None)


@pytest.mark.parametrize("case", SPANS.values(), ids=SPANS)
def test_every_method_takes_spans_like_the_same_mask(case) -> None:
    for name, method in METHODS.items():
        if not case.fits(method) or (name in NOT_CAUSAL and (case.causal or case.keys)):
            continue
        call = case.call(method)
        # blocks are chosen for all queries at once only where the mask's strides say that they see the same keys
        call = replace(call, query=call.query.double(), key=call.key.double(), value=call.value.double())
        output, weights = dispatch.attention(call, dispatch.REFERENCE, weights=not method.has_branch)
        wanted, wanted_weights = dispatch.attention(
            in_a_mask(call), dispatch.REFERENCE, weights=not method.has_branch
        )
        if method.has_branch and not call.causal and call.query.shape[2] == call.key.shape[2]:
            seen = call.rows.valid[:, 0, 0, :, None].expand_as(output[:, 0])[:, None]
            output, wanted = output * seen, wanted * seen  # the blocks of padded queries are arbitrary
        torch.testing.assert_close(output, wanted)
        if weights is not None:
            torch.testing.assert_close(weights, wanted_weights)


CHANGES: dict[str, Callable[[Rows], Tensor]] = {
    "all": lambda rows: rows.valid,
    "heads": lambda rows: rows.of([1, 3], {}).valid,
    "examples": lambda rows: rows.of_examples(torch.tensor([1])).valid,
    "tokens at the beginning": lambda rows: rows.of_tokens(slice(0, 5)).valid,
    "tokens at the end": lambda rows: rows.of_tokens(slice(4, 9)).valid,
    "queries": lambda rows: rows.at(torch.tensor([[0, 2], [8, 3]])).valid,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("causal", "first_query"), [(False, 0), (True, 0), (True, 2)])
def test_parts_of_rows_keep_their_spans(change, masked, causal, first_query) -> None:
    query = normal(2, 4, 9, 3)
    mask = (torch.arange(9) % 4 > 0).expand(2, 1, 9, 9) if masked else None
    rows = Rows(
        query, query, mask=mask, causal=causal, first_query=first_query, span=torch.tensor([[0, 7], [3, 9]])
    )
    explicit = Rows(query, query, mask=rows.valid)
    found, wanted = (change(each) for each in (rows, explicit))
    assert found.expand(wanted.shape if wanted.ndim > found.ndim else found.shape).equal(
        wanted.expand(found.shape)
    )


def test_parts_of_a_call_keep_its_span_and_kernels_that_know_none_get_a_mask() -> None:
    query = normal(2, 4, 6, 8, dtype=torch.float32)
    key = normal(2, 2, 9, 8, dtype=torch.float32)
    span = torch.tensor([[0, 7], [3, 9]])
    call = Call(query, key, key, Method(rule=TopK(0.5)), 0.5, causal=True, first_query=3, span=span)
    some = call.of([1, 2], call.method)
    assert some.first_query == 3
    assert some.span is span
    masked = some.masked()
    assert (masked.first_query, masked.span, masked.causal) == (0, None, False)
    assert masked.valid is not None
    assert masked.valid.equal(in_a_mask(call).valid)
    assert replace(call, span=None, causal=False, valid=masked.valid).masked().valid is masked.valid
