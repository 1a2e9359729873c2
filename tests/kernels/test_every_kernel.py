"""Every kernel on every method and case: it does what the reference does, or says what it lacks."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention import Method, TopK, TopP
from crisp_attention.kernels import dispatch, reference
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.pairs import valid_queries
from tests.kernels.calls import CASES, EVERY_METHOD, Case

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ULPS = {torch.float32: 4, torch.bfloat16: 1, torch.float16: 1}
SMALLEST = 2.0**-148

# where there is no GPU, Triton's interpreter takes minutes, the more the longer rows are
SLOW = [] if torch.cuda.is_available() else ["triton"]
LONGEST = 64

every_kernel = pytest.mark.parametrize(
    "kernel",
    [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in [*KERNELS, dispatch.REFERENCE]],
)
every_device = pytest.mark.parametrize("device", DEVICES)
every_method = pytest.mark.parametrize("method", EVERY_METHOD.values(), ids=EVERY_METHOD)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def lacks(kernel: str, call: Call) -> bool:
    """Whether the kernel lacks something; if so, forcing it says what, and nothing else takes it."""
    lacking = dispatch.lacks(kernel, call)
    if lacking is None:
        return False
    assert lacking.strip()
    with pytest.raises(ValueError, match="lacks"):
        dispatch.attention(call, kernel)
    assert kernel not in {part.kernel for part in dispatch.plan(call)}
    return True


def learning(call: Call, dtype: torch.dtype | None = None) -> Call:
    """The call with leaves that want gradients, a bias only if it did; in `dtype`."""
    made = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_(name != "bias" or tensor.requires_grad)
        for name in ("query", "key", "value", "bias", "sinks")
        if (tensor := getattr(call, name)) is not None
    }
    learned = {name: value.detach().requires_grad_() for name, value in call.parameters.items()}
    return replace(call, **made, parameters=learned)


def results(call: Call, kernel: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output in float64, computed in `dtype`; and its gradients, if the kernel has any, for whatever wants one."""
    learner = learning(call, dtype)
    if lacking := dispatch.lacks(kernel, learner):
        assert "gradients" in lacking
        return [_of_real_queries(call, dispatch.attention(call, kernel)[0]).double()]
    output = _of_real_queries(call, dispatch.attention(learner, kernel)[0])
    slopes = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=torch.float64)
    output.backward(slopes.reshape(output.shape).to(call.query.dtype).to(output.dtype))
    leaves = [learner.query, learner.key, learner.value, learner.bias, learner.sinks]
    slots = [leaf.grad for leaf in [*leaves, *learner.parameters.values()] if leaf is not None]
    return [output.detach().double(), *(slope.double() for slope in slots if slope is not None)]


def _of_real_queries(call: Call, output: Tensor) -> Tensor:
    if not call.method.block_size or call.valid is None:
        return output
    # blocks give padded queries what they like
    square = call.valid.expand(*call.valid.shape[:2], output.shape[2], call.key.shape[2])
    return torch.where(valid_queries(square).unsqueeze(-1), output, 0.0)


@every_kernel
@every_device
@every_method
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_near_to_float64_as_the_reference(kernel, device, method, case) -> None:
    if not case.fits(method) or (kernel in SLOW and case.length > LONGEST):
        return
    call = case.call(method, device)
    if lacks(kernel, call):
        return
    exact, own, found = (
        results(call, dispatch.REFERENCE, torch.float64),
        results(call, dispatch.REFERENCE),
        results(call, kernel),
    )
    floor = ULPS[case.dtype] * torch.finfo(case.dtype).eps
    assert len(found) in (1, len(exact))  # the output alone where the kernel has no gradients
    for at, (right, ours, theirs) in enumerate(zip(exact, found, own, strict=False)):
        assert ours.isfinite().all()
        allowed = (3 if at else 2) * (theirs - right).abs().max() + floor * right.abs().max() + SMALLEST
        assert (ours - right).abs().max() <= allowed, "a gradient" if at else "the output"


@every_kernel
@every_device
@every_method
@pytest.mark.parametrize("causal", [False, True])
def test_a_key_that_is_nan_reaches_exactly_the_rows_that_see_it(kernel, device, method, causal) -> None:
    call = Case(64, causal=causal).call(method, device)
    if lacks(kernel, call):
        return
    clean, _ = dispatch.attention(call, kernel)
    call.key[0, 1, 9] = torch.nan
    reached = reference.attention(call)[0].isnan().any(dim=-1)
    assert reached[0, 1].any()
    assert not reached[1].any()
    output, _ = dispatch.attention(call, kernel)
    broken = output.isnan().any(dim=-1)
    if (
        kernel != dispatch.REFERENCE
    ):  # in which it reaches causal rows before it as well, as in eager attention
        sees = torch.arange(64, device=device) >= (9 if causal else 0)
        assert broken.equal(reached & sees)
    assert output[~broken].equal(clean[~broken])


@every_kernel
@every_device
@every_method
def test_equal_scores_keep_the_first_keys(kernel, device, method) -> None:
    case = CASES["equal scores"]
    call = case.call(method, device)
    call = replace(call, value=torch.eye(33, device=device).expand(2, 4, 33, 33).contiguous())
    if lacks(kernel, call):
        return
    weights, _ = dispatch.attention(call, kernel)
    wanted, _ = reference.attention(call)
    assert (weights > 0).equal(wanted > 0)
    torch.testing.assert_close(weights, wanted, rtol=1e-6, atol=0)


@every_kernel
@every_device
@pytest.mark.parametrize(
    ("rule", "count"),
    [
        *((TopP(mass), round(50 * mass)) for mass in (0.06, 0.3, 0.54, 0.6, 0.8, 0.98)),
        (TopP(1e-12), 1),
        *((TopK(sparsity), 50 - round(50 * sparsity)) for sparsity in (0.02, 0.46, 0.7, 0.94)),
    ],
    ids=str,
)
def test_fifty_equal_keys_reach_a_share_exactly(kernel, device, rule, count) -> None:
    """However the share is rounded: 0.54 in float32 is more than 27 of 50."""
    states = torch.ones(1, 1, 50, 4, device=device)
    unit = torch.eye(50, device=device)[None, None]
    call = Call(states[:, :, :1], states, unit, Method(rule=rule), scale=1.0)
    if not lacks(kernel, call):
        weights = dispatch.attention(call, kernel)[0].flatten()
        assert (weights > 0).tolist() == [True] * count + [False] * (50 - count)


@every_kernel
@every_device
@every_method
def test_a_row_without_a_valid_key_gives_zeros(kernel, device, method) -> None:
    call = CASES["no valid key"].call(method, device)
    if lacks(kernel, call):
        return
    output, in_query, in_key, in_value, *_ = results(call, kernel)
    assert call.valid is not None
    for rows in (output, in_query):
        assert (rows[0, :, ::3] == 0).all()
        assert (rows[1] == 0).all()
    for columns in (in_key, in_value):
        assert (columns[1] == 0).all()
        assert (columns[0, :, :3] == 0).all()


@every_kernel
@every_device
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_again_gives_the_same_bits(kernel, device, method, dtype) -> None:
    call = Case(33 if kernel in SLOW else 130, dtype=dtype).call(method, device)
    if not lacks(kernel, call) and device == "cpu":
        first, second = (results(call, kernel) for _ in range(2))
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@every_kernel
@every_device
@every_method
def test_dropout_drops_its_share_and_the_gradients_go_where_it_did_not(kernel, device, method) -> None:
    """With unit vectors as values the output is the weights, and shows what was dropped."""
    call = Case(32, width=32, groups=2, batch=3).call(method, device)
    unit = torch.eye(32, device=device).expand(3, 2, 32, 32).contiguous()
    call = replace(call, value=unit, dropout=0.25)
    if lacks(kernel, call):
        return
    torch.manual_seed(5)
    output, *slopes = results(call, kernel)
    torch.manual_seed(5)
    assert results(call, kernel)[0].equal(output)
    assert not results(call, kernel)[0].equal(output)

    leaves = [getattr(call, name).double().requires_grad_() for name in ("query", "key", "value")]
    learned = {name: value.clone().requires_grad_() for name, value in call.parameters.items()}
    plain = replace(call, query=leaves[0], key=leaves[1], value=leaves[2], dropout=0.0, parameters=learned)
    _, weights = dispatch.attention(plain, weights=True)
    assert weights is not None
    stay = output > 0
    torch.testing.assert_close(output[stay], weights[stay] / 0.75, rtol=1e-5, atol=1e-6)
    kept = stay.sum() / (weights > 0).sum()
    assert abs(kept - 0.75) < 5 * (0.75 * 0.25 / (weights > 0).sum()) ** 0.5

    repeated = leaves[2].repeat_interleave(2, dim=1)
    again = (weights * stay / 0.75) @ repeated
    along = torch.linspace(-1, 1, again.numel(), device=device, dtype=torch.float64).reshape(again.shape)
    again.backward(along.float().double())
    for ours, leaf in zip(slopes, [*leaves, *learned.values()], strict=True):
        torch.testing.assert_close(ours, leaf.grad.double(), rtol=1e-4, atol=1e-5)
