"""Where nothing is dropped, torch's own attention computes a call."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import crisp_attention as crisp
from crisp_attention.kernels import dispatch, sdpa
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import as_method
from tests.cases import normal

NOTHING = [
    crisp.Dense(),
    crisp.TopK(0.0),
    crisp.TopP(1.0),
    crisp.BlockTopK(0.0),
    crisp.Window(41),
    crisp.TopK(keep=20),
]
FLOAT = torch.float32


def call_of(method, **more) -> Call:
    query = normal(2, 4, 20, 16, dtype=FLOAT)
    key, value = normal(2, 2, 2, 20, 16, seed=1, dtype=FLOAT)
    return Call(query, key, value, as_method(method), scale=0.3, **more)


@pytest.mark.parametrize("method", NOTHING, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_taken_and_gives_the_bits_of_torch(method, causal) -> None:
    call = call_of(method, causal=causal)
    assert [part.kernel for part in dispatch.plan(call)] == ["sdpa"]
    given = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    output, _ = dispatch.attention(replace(call, query=given[0], key=given[1], value=given[2]))
    wanted = scaled_dot_product_attention(*given, is_causal=causal, scale=0.3, enable_gqa=True)
    assert output.equal(wanted)
    torch.testing.assert_close(output, dispatch.attention(call, dispatch.REFERENCE)[0], rtol=1e-5, atol=1e-5)
    output.sum().backward()
    assert all(each.grad is not None for each in given)


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"method": as_method(crisp.TopK(0.5))}, "sparsity"),
        ({"method": as_method(crisp.TopK(keep=19))}, "sparsity"),
        ({"method": as_method(crisp.Dense(temperature=2.0))}, "sparsity"),
        ({"method": crisp.SparseLinear(0.5)}, "sparsity"),
        ({"valid": torch.ones(1, 1, 1, 20, dtype=torch.bool)}, "masks"),
        ({"span": torch.tensor([[0, 20], [0, 7]])}, "spans of keys"),
        ({"bias": torch.zeros(1, 1, 20, 20)}, "a bias"),
        ({"softcap": 2.0}, "a softcap"),
        ({"scale": -0.3}, "scales that are not positive"),
        ({"sinks": torch.zeros(4)}, "attention sinks"),
        ({"causal": True, "first_query": 3}, "queries that begin after the first key"),
        ({"dropout": 0.1, "generator": torch.Generator()}, "a generator for dropout"),
    ],
    ids=range(12),
)
def test_what_it_lacks_goes_elsewhere(change, lacking) -> None:
    call = replace(call_of(crisp.Dense()), **change)
    assert sdpa.lacks(call) == lacking
    assert "sdpa" not in [part.kernel for part in dispatch.plan(call)]
