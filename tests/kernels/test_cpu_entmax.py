"""α-entmax of any α on CPUs: of powers that are products or not, and in tiles that are gathered or not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention import Entmax, Method
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call

EXACT = (1.01, 1.1, 1.2, 1.25, 1.3, 4 / 3, 1.4, 1.75, 1.99)
HEADS, KEYS = 3, 71
ALPHAS = torch.tensor([-0.03, 0.0, 0.03])  # 1.056, 1.5 and 1.944


def call_of(method: Entmax, spread: float, causal: bool = False) -> Call:
    """A call whose rows of scores have about this standard deviation, every third one a larger one."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, HEADS, KEYS, 16, generator=generator)
    query[:, :, ::3] *= 5
    parameters = {"rule.alpha": ALPHAS} if method.alpha == "learned" else {}
    return Call(
        query, key, value, Method(rule=method), scale=spread / 4, causal=causal, parameters=parameters
    )


def compared(call: Call) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients by the kernel, and by the reference in float64."""
    found = []
    for kernel, dtype in (("cpu", torch.float32), (dispatch.REFERENCE, torch.float64)):
        states = [each.to(dtype).requires_grad_() for each in (call.query, call.key, call.value)]
        learned = {name: each.to(dtype).requires_grad_() for name, each in call.parameters.items()}
        query, key, value = states
        own = replace(call, query=query, key=key, value=value, parameters=learned)
        output, _ = dispatch.attention(own, kernel)
        along = torch.linspace(-1, 2, output.numel(), dtype=dtype).reshape(output.shape)
        gradients = torch.autograd.grad(output, [*states, *learned.values()], along)
        found.append([output.detach(), *gradients])
    return found[0], found[1]


def assert_close(call: Call, smallest: float = 1e-5) -> None:
    for found, wanted in zip(*compared(call), strict=True):
        error = (found - wanted).abs().max() / wanted.abs().max()
        assert error <= smallest, error


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("alpha", EXACT)
def test_every_exponent_is_the_reference(alpha: float, spread: float, causal: bool) -> None:
    # above 1.5 slopes jump where weights end
    assert_close(call_of(Entmax(alpha), spread, causal), 1e-5 if alpha < 1.5 else 1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
def test_learned_exponents_have_gradients_whatever_is_kept(spread: float, causal: bool) -> None:
    assert_close(call_of(Entmax("learned"), spread, causal), 1e-4)


@pytest.mark.parametrize("alpha", [1.01, 1.25, 1.3])
def test_rows_unlike_the_one_before(alpha: float) -> None:
    """Newton's method starts where the row before ended, however far off that is."""
    call = call_of(Entmax(alpha), 1.0)
    call.query[:, :, 1::4] *= 300
    call.query[:, :, 2::4] = 0
    call.key[..., 7, :] = call.query[..., 5, :] * 3
    assert_close(call, 3e-5)


@pytest.mark.parametrize("alpha", [1.01, 1.25])
def test_what_is_not_finite_reaches_no_row_that_gives_it_no_weight(alpha: float) -> None:
    """Where much is kept, weights of 0 are multiplied by values as well, unless one is not finite."""
    call = call_of(Entmax(alpha), 0.05, causal=True)
    call.value[:, :, 40, 3] = torch.inf
    output, _ = dispatch.attention(call, "cpu")
    assert output[:, :, :40].isfinite().all()
    assert not output[:, :, 40:, 3].isfinite().any()
    assert output[..., :3].isfinite().all()
