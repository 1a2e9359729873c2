"""Second derivatives: the reference has them, and every other kernel says that it does."""

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Entmax, Method, TopK
from crisp_attention.kernels import flex, triton_rows
from crisp_attention.kernels.blocks import with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import as_method
from tests.cases import SEED, attention, normal, self_attention
from tests.table import METHODS

EVERY = METHODS | {"entmax 2.5": Method(rule=Entmax(2.5)), "entmax learned": Method(rule=Entmax("learned"))}


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_the_reference_has_them(method: Method) -> None:
    inputs = [*self_attention(batch=1, heads=2, groups=1, length=4), torch.tensor([0.002, -0.003]).double()]

    def output(query: Tensor, key: Tensor, value: Tensor, alpha: Tensor) -> Tensor:
        return attention(query, key, value, method, scale=0.7, seed=SEED, parameters={"rule.alpha": alpha})[0]

    learns = [True, True, True, method.rule == Entmax("learned")]
    leaves = [each.requires_grad_(want) for each, want in zip(inputs, learns, strict=True)]
    assert torch.autograd.gradgradcheck(output, leaves, fast_mode=True)


def penalty(attend, *states: Tensor) -> Tensor:
    """The gradient of a gradient penalty, as adversarial training takes it."""
    leaves = [each.detach().requires_grad_() for each in states]
    (slope,) = torch.autograd.grad(attend(*leaves).square().sum(), leaves[0], create_graph=True)
    slope.square().sum().backward()
    return leaves[0].grad


@pytest.mark.parametrize("method", [TopK(0.5), BlockTopK(0.5, 16), Entmax()], ids=str)
def test_where_a_kernel_has_none_it_names_the_backend_that_does(method) -> None:
    states = [normal(1, 2, 48, 16, seed=seed, dtype=torch.float32) for seed in range(3)]
    with pytest.raises(
        NotImplementedError, match=r'the cpu kernel has first derivatives only.*backend="reference"'
    ):
        penalty(lambda *leaves: crisp.attention(*leaves, method), *states)
    found = penalty(lambda *leaves: crisp.attention(*leaves, method, backend="reference"), *states)
    exact = penalty(lambda *leaves: crisp.attention(*leaves, method), *(each.double() for each in states))
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def test_first_derivatives_may_be_part_of_a_graph() -> None:
    states = [normal(1, 2, 48, 16, seed=seed, dtype=torch.float32).requires_grad_() for seed in range(3)]
    for graph in (True, False):
        output = crisp.attention(*states, TopK(0.5), backend="cpu").square().sum()
        slopes = torch.autograd.grad(output, states, create_graph=graph)
        if graph:
            wanted = slopes
    assert all(one.equal(other) for one, other in zip(slopes, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_names_it_as_well(monkeypatch) -> None:
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    states = [normal(1, 2, 20, 8, seed=seed) for seed in range(3)]
    method = as_method(BlockTopK(0.6, 4))
    with pytest.raises(
        NotImplementedError, match=r'the flex kernel has first derivatives only.*backend="reference"'
    ):
        penalty(lambda *leaves: flex.attention(with_blocks(Call(*leaves, method, scale=0.3))), *states)


@pytest.mark.cuda
@pytest.mark.slow
def test_triton_names_it_as_well() -> None:
    pytest.importorskip("triton", reason="triton is not installed; it is for Linux only")
    states = [normal(1, 1, 5, 16, seed=seed, dtype=torch.float32) for seed in range(3)]
    if torch.cuda.is_available():
        states = [each.cuda() for each in states]
    with pytest.raises(
        NotImplementedError, match=r'the triton kernel has first derivatives only.*backend="reference"'
    ):
        penalty(lambda *leaves: triton_rows.attention(Call(*leaves, as_method(Dense()), scale=0.3)), *states)
