"""The CPU kernels under torch's modes and defaults, and at the edges of what tensors can be."""

import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import crisp_attention as crisp
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu import block_operators, operators, sighted_operators
from crisp_attention.kernels.cpu.linear import operators as linear_operators
from crisp_attention.methods.method import Method, as_method
from tests.cases import normal

TOPK, BLOCKS = as_method(crisp.TopK(0.8)), as_method(crisp.BlockTopK(0.5, block_size=16))
LINEAR = crisp.SparseLinear(0.4, 0.1, block_size=16, combine="sum")
WINDOW = crisp.Method(crisp.Window(9, global_tokens=1))
HASHED, DRAWN = crisp.Method(crisp.LSH(4)), crisp.Method(crisp.RandomPairs(0.7))
METHODS = pytest.mark.parametrize(
    "method",
    [TOPK, BLOCKS, WINDOW, LINEAR, HASHED, DRAWN],
    ids=["topk", "blocks", "window", "linear", "lsh", "random pairs"],
)
OPERATORS = {
    TOPK: (operators, "rows"),
    BLOCKS: (block_operators, "blocks"),
    WINDOW: (block_operators, "blocks"),
    LINEAR: (linear_operators, "sparse_linear"),
    HASHED: (sighted_operators, "sighted"),
    DRAWN: (sighted_operators, "sighted"),
}


def states(*shape: int) -> list[torch.Tensor]:
    return [normal(*shape or (1, 2, 72, 16), seed=seed, dtype=torch.float32) for seed in range(3)]


def attend(method: Method, *given: torch.Tensor) -> torch.Tensor:
    return crisp.attention(*(given or states()), method, backend="cpu")


@METHODS
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(method, default) -> None:
    plain = attend(method)
    torch.set_default_dtype(default)
    try:
        assert attend(method).equal(plain)
    finally:
        torch.set_default_dtype(torch.float32)


@METHODS
def test_the_default_device_changes_nothing(method) -> None:
    plain, given = attend(method), states()
    with torch.device("meta"):
        assert attend(method, *given).equal(plain)


@pytest.mark.parametrize("width", [4, 24, 72])
@pytest.mark.parametrize(
    "rule",
    [
        crisp.TopK(0.6),
        crisp.TopP(0.7),
        crisp.Entmax(1.3),
        crisp.NofM(2, 5),
        crisp.RandomK(0.6),
        crisp.Dense(),
    ],
    ids=str,
)
def test_output_has_the_same_bits_with_and_without_gradients(rule, width: int) -> None:
    query, key, value = states(2, 3, 70, width)
    call = Call(query, key, value, as_method(rule), width**-0.5, seed=torch.tensor(3))
    plain = dispatch.attention(call, "cpu")[0]
    learner = replace(call, query=query.clone().requires_grad_())
    assert dispatch.attention(learner, "cpu")[0].equal(plain)


def test_what_inference_left_does_not_hinder_training() -> None:
    given = states(1, 2, 53, 16)  # a length that nothing else has, so that nothing is remembered of it
    with torch.inference_mode():
        attend(TOPK, *given)
    given[0].requires_grad_()
    attend(TOPK, *given).sum().backward()
    assert given[0].grad.isfinite().all()


@METHODS
def test_checkpointing_lets_nobody_read_what_was_saved_twice(method) -> None:
    given = [each.requires_grad_() for each in states()]
    plain = torch.autograd.grad(attend(method, *given).square().sum(), given)
    output = checkpoint(lambda *each: attend(method, *each), *given, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(output.square().sum(), given), plain, strict=True):
        assert one.equal(other)


@METHODS
def test_without_dropout_the_generator_is_left_alone(method) -> None:
    before = torch.get_rng_state()
    attend(method)
    assert torch.get_rng_state().equal(before)


class Attention(torch.nn.Module):
    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attend(self.method, query, key, value)


@METHODS
def test_export_gives_what_eager_gives_and_leaves_nothing_behind(method) -> None:
    given = tuple(states(1, 2, 59, 16))
    length = torch.export.Dim("length", min=2, max=128)
    dynamic = None if method is not TOPK else ({2: length},) * 3
    program = torch.export.export(Attention(method), given, dynamic_shapes=dynamic, strict=False)
    assert program.module()(*given).equal(attend(method, *given))


@METHODS
@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(("test_schema", "test_autograd_registration", "test_faketensor"), id="plain"),
        pytest.param(("test_aot_dispatch_dynamic",), marks=pytest.mark.slow, id="compiled"),
    ],
)
def test_torch_sees_the_operators_on_strided_inputs(method, tests) -> None:
    seen: list[tuple] = []
    module, name = OPERATORS[method]
    real = getattr(module, name)
    try:
        setattr(module, name, lambda *inputs: seen.append(inputs) or real(*inputs))
        given = [normal(1, 2, 16, 72, seed=s, dtype=torch.float32).transpose(2, 3) for s in range(3)]
        attend(method, *(each.requires_grad_() for each in given))  # without gradients no operator is needed
    finally:
        setattr(module, name, real)
    query, key, value, *rest = seen[0]
    learning = [each.detach().requires_grad_() for each in (query, key, value)]
    torch.library.opcheck(real, (*learning, *rest), test_utils=tests)


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf, -torch.inf])
def test_gradients_of_blocks_show_what_is_not_finite(spoiled) -> None:
    given = [each.requires_grad_() for each in states(1, 1, 32, 16)]
    slopes = torch.ones(1, 1, 32, 16)
    slopes[0, 0, 3, 2] = spoiled
    attend(BLOCKS, *given).backward(slopes)
    found = [~each.grad.isfinite().all(dim=-1) for each in given]
    assert found[0].nonzero().tolist() == [[0, 0, 3]]
    assert all(each[..., :16].all() for each in found[1:])


@pytest.mark.parametrize(
    ("method", "shape"), [(TOPK, (0, 2, 8, 16)), (TOPK, (1, 2, 0, 16)), (BLOCKS, (0, 2, 8, 16))]
)
def test_empty_tensors_are_left_to_the_reference(method, shape) -> None:
    call = Call(*states(*shape), method, scale=0.25)
    assert dispatch.lacks("cpu", call) == "empty tensors"
    assert dispatch.attention(call)[0].shape == shape


def test_forward_mode_gradients_are_left_to_the_reference() -> None:
    query, key, value = states()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, torch.ones_like(query))
        tangent = forward_ad.unpack_dual(crisp.attention(dual, key, value, TOPK)).tangent
    assert tangent.abs().sum() > 0


@pytest.mark.parametrize("width", [96, 130, 192])
def test_wide_heads(width) -> None:
    given = [each.requires_grad_() for each in states(1, 2, 40, width)]
    exact = [each.detach().double().requires_grad_() for each in given]
    attend(TOPK, *given).square().sum().backward()
    crisp.attention(*exact, TOPK).square().sum().backward()
    for one, other in zip(given, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-4)


def test_keys_too_many_to_stay_packed(monkeypatch) -> None:
    from crisp_attention.kernels.cpu import operators

    given = states(2, 2, 200, 16)
    plain = attend(TOPK, *given)
    monkeypatch.setattr(operators, "PACKED_NUMBERS", 0)
    assert attend(TOPK, *given).equal(plain)


NOWHERE = """
import torch, crisp_attention as crisp
from crisp_attention.kernels.cpu import native
real = native.cfunc
def without_cache(signature, cache=False, **options):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return real(signature, **options)
native.cfunc = without_cache
print(crisp.attention(*torch.ones(3, 1, 1, 4, 16), crisp.TopK(0.5), backend="cpu").sum())
"""


@pytest.mark.slow
def test_without_a_place_for_a_cache_it_compiles_each_time_and_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", NOWHERE], capture_output=True, text=True, env=os.environ)
    assert "tensor(64.)" in done.stdout, done.stderr
    assert "compiling a kernel for this CPU (forward)" in done.stderr
    assert logging.getLogger("crisp_attention").level == logging.NOTSET
