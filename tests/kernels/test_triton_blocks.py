"""The Triton kernel over blocks, with and without its linear part. Without a GPU, Triton's interpreter runs it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import BlockTopK, Linear, Method, SparseLinear, TopK
from crisp_attention.kernels import dispatch, registry, triton_blocks
from crisp_attention.kernels.blocks import with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.methods.method import as_method
from crisp_attention.methods.part import Shape
from tests.cases import normal

pytest.importorskip("triton.language", reason="triton is not installed; it is for Linux only")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cuda,
    # numpy's, of the interpreter: 0 / 0 and inf - inf
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def a_call(method: Method, length=70, heads=2, groups=1, width=16, lengths=None, dtype=torch.float32) -> Call:
    """A call with parameters that are not those of the start; `lengths` of the examples, padded on the left."""
    query, key, value = (
        normal(2, each, length, width, seed=seed, dtype=dtype).to(DEVICE)
        for seed, each in enumerate((heads, groups, groups))
    )
    valid = None
    if lengths is not None:
        real = torch.arange(length) >= length - torch.tensor(lengths)[:, None]
        valid = real[:, None, None].expand(2, 1, 1, length).to(DEVICE)
    parameters = {
        name: (0.3 * normal(*each.value.shape, seed=7, dtype=torch.float32) + each.value).to(DEVICE)
        for name, each in method.parameters(Shape(heads, groups, width)).items()
    }
    return Call(query, key, value, method, width**-0.5, valid, parameters=parameters)


def results(call: Call, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """The output at real tokens and all gradients in float64, computed in `dtype`."""
    states = [each.to(dtype, copy=True).requires_grad_() for each in (call.query, call.key, call.value)]
    wide = torch.promote_types(dtype, torch.float32)
    learned = {name: each.to(wide, copy=True).requires_grad_() for name, each in call.parameters.items()}
    call = replace(call, query=states[0], key=states[1], value=states[2], parameters=learned)
    output, _ = dispatch.attention(call, backend)
    assert output.dtype == dtype
    if call.valid is not None:
        output = output * call.valid[:, :, 0, :, None]
    gradients = torch.autograd.grad(
        (normal(*output.shape, seed=3).to(output) * output).sum(), [*states, *learned.values()]
    )
    return [output.detach().double(), *(each.double() for each in gradients)]


def check(call: Call) -> None:
    assert triton_blocks.lacks(with_blocks(call)) is None
    dtype = call.query.dtype
    ours, plain = results(call, "triton_blocks", dtype), results(call, "reference", dtype)
    for number, (one, other, right) in enumerate(
        zip(ours, plain, results(call, "reference", torch.float64), strict=True)
    ):
        # on GPUs each product is without its last 2**-22
        units = 8 if DEVICE == "cuda" else 2
        least = torch.tensor(units * torch.finfo(dtype).eps * max(right.abs().max().item(), 1.0))
        assert (one - right).abs().max() <= 3 * torch.maximum((other - right).abs().max(), least), number


@pytest.mark.parametrize("width", [64, 128])  # at the former a public kernel is wrong
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_gradient_at_the_widths_of_real_models(width: int, dtype: torch.dtype) -> None:
    check(a_call(SparseLinear(0.3, 0.2, 32), length=150, heads=1, width=width, dtype=dtype))


@pytest.mark.parametrize("feature_map", ["softmax", "elu", "relu"])
@pytest.mark.parametrize("combine", ["project", "alpha", "sum", "alone"])
def test_feature_maps_and_combinations_beside_padding(feature_map: str, combine: str) -> None:
    check(a_call(SparseLinear(0.3, 0.2, 16, feature_map, combine=combine), lengths=(70, 41)))


@pytest.mark.parametrize(
    "method",
    [
        BlockTopK(0.7, 16),
        BlockTopK(0.0, 16),
        SparseLinear(0.3, 0.2, 16, scope="all"),
        SparseLinear(0.3, 0.2, 16, feature_map="hedgehog"),  # whose linear part is computed after the kernel
    ],
    ids=str,
)
def test_other_methods(method: BlockTopK | Method) -> None:
    check(a_call(as_method(method), heads=4, groups=2, lengths=(64, 17)))


@pytest.mark.parametrize("length", [1, 16, 33])
def test_lengths(length: int) -> None:
    check(a_call(SparseLinear(0.3, 0.2, 16), length=length))


def test_heads_as_wide_as_they_get() -> None:
    check(a_call(Method(BlockTopK(0.5, 16)), length=50, heads=1, width=256))


def dropping(call: Call, seed: int = 5) -> Tensor:
    torch.manual_seed(seed)
    return dispatch.attention(replace(call, dropout=0.25), "triton_blocks")[0]


def test_dropout_drops_weights_and_is_drawn_again_in_the_backward_pass() -> None:
    call = a_call(Method(BlockTopK(0.4, 16)), length=64, heads=4, groups=2, width=64, lengths=(64, 40))
    unit = torch.eye(64, device=DEVICE).expand(2, 2, 64, 64)
    plain, weights = (
        each(replace(call, value=unit))
        for each in (lambda c: dispatch.attention(c, "reference")[0], dropping)
    )
    real = call.valid[:, :, 0, :, None].expand_as(plain) & (plain > 0)
    stays = weights > 0
    assert not (stays & ~real).any()
    torch.testing.assert_close(weights[stays], plain[stays] / 0.75)
    assert 1 - stays.sum().item() / real.sum().item() == pytest.approx(0.25, abs=0.03)
    states = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    given = normal(*call.query.shape, seed=3).to(call.query)
    found = torch.autograd.grad(
        dropping(replace(call, query=states[0], key=states[1], value=states[2])), states, given
    )
    # the same by the definition, with what was dropped as a mask of the weights
    mask = stays.double() / 0.75
    query, key, value = wide = [each.detach().double().requires_grad_() for each in states]
    keys, values = (each.repeat_interleave(2, dim=1) for each in (key, value))
    scores = (query @ keys.mT * call.scale).masked_fill(~real, -torch.inf)
    kept = real.any(dim=-1, keepdim=True)
    output = (scores.masked_fill(~kept, 0).softmax(dim=-1) * kept * mask) @ values
    for ours, exact in zip(found, torch.autograd.grad(output, wide, given.double()), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)
    assert dropping(call).equal(dropping(call))
    assert not dropping(call).equal(dropping(call, seed=6))


def test_a_temperature_does_not_reach_the_linear_part() -> None:
    check(a_call(Method(BlockTopK(0.7, 16, local_blocks=0), crisp.Dense(temperature=2.0), branch=Linear())))


def test_nan_reaches_the_rows_that_see_it_and_no_others() -> None:
    call = with_blocks(a_call(Method(BlockTopK(0.7, 16))))
    call.value[:, :, 40] = torch.nan
    found = dispatch.attention(call, "triton_blocks")[0].isnan()
    assert call.blocks is not None
    sees = call.blocks.pairs(call.rows)[..., 40]
    assert found.equal(sees[..., None].expand_as(found))
    assert 0 < sees.sum() < sees.numel()


def test_scores_of_minus_infinity_weigh_nothing() -> None:
    call = a_call(Method(BlockTopK(0.0, 16)))
    call.query[:] = call.query.abs()
    call.key[:, :, :16] = -torch.inf
    ours, plain = (dispatch.attention(call, backend)[0] for backend in ("triton_blocks", "reference"))
    torch.testing.assert_close(ours, plain, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: a_call(SparseLinear(0.3, block_size=8)), "blocks of 8 tokens (it has 16, 32, 64, 128)"),
        (
            lambda: a_call(SparseLinear(0.3, block_size=16), width=20),
            "heads of width 20 (it has 16, 32, 64, 128, 256)",
        ),
        (lambda: a_call(Method(rule=TopK(0.5))), "the layout full"),
        (lambda: a_call(Method(BlockTopK(0.5, 16), TopK(0.5))), "the rule topk"),
        (
            lambda: replace(a_call(SparseLinear(0.3, block_size=16)), causal=True),
            "block choices for single queries",
        ),
    ],
)
def test_what_it_lacks(call, reason: str) -> None:
    assert reason in (triton_blocks.lacks(with_blocks(call())) or "")


def test_on_a_gpu_it_comes_before_other_kernels_of_blocks_and_computes_the_branch() -> None:
    rows = [row.kernel for row in registry.FASTEST if row.device == "cuda"]
    assert rows.index("triton_blocks") < rows.index("flex")
    assert triton_blocks.computes_branch(a_call(SparseLinear(0.3, block_size=16)))
    assert not triton_blocks.computes_branch(a_call(Method(BlockTopK(0.5, 16))))
