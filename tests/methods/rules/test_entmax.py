import pytest
import torch

import crisp_attention as crisp
from crisp_attention import Dense, Entmax, Method, PerHead
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rules.entmax import HIGHEST, LOWEST, alpha_entmax
from tests.cases import attention, normal, self_attention
from tests.methods.rules.rows import weights

ALPHAS = [1.01, 1.1, 1.5, 1.7, 2, 2.5, 4, 10]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1, 1.0])
def test_alpha_one_is_the_softmax_bit_for_bit(alpha: float, dtype: torch.dtype) -> None:
    scores, visible = normal(2, 3, 5, 9, dtype=dtype), torch.rand(2, 1, 5, 9) < 0.7
    assert weights(Entmax(alpha), scores, visible).equal(weights(Dense(), scores, visible))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("spread", [0.001, 1.0, 1e4])
def test_single_precision_is_within_a_few_units_of_double(alpha: float, spread: float) -> None:
    scores = normal(50, 40).float() * spread
    exact = weights(Entmax(alpha), scores.double())
    error = (weights(Entmax(alpha), scores).double() - exact).abs()
    assert error.max() <= 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_half_precision_sum_to_one(alpha: float, dtype: torch.dtype) -> None:
    q, k, _ = self_attention(length=30, dtype=dtype)
    everything = torch.eye(30, dtype=dtype).expand(2, 2, -1, -1)
    output = crisp.attention(3 * q, k, everything, Entmax(alpha), is_causal=True)  # the weights themselves
    assert output.dtype == dtype
    assert (output == 0).float().mean() > 0.6
    ones = torch.ones(2, 4, 30, dtype=torch.float64)
    torch.testing.assert_close(output.double().sum(-1), ones, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_what_gets_no_weight_is_not_kept() -> None:
    seen: list[Observation] = []
    q, k, v = self_attention()
    _, shares = attention(q, k, v, Method(rule=Entmax(2)), scale=1.0, observe=seen.append)
    assert seen[0].keep.equal(shares > 0)
    assert 0 < seen[0].keep.double().mean() < 0.9


def test_learned_alphas_are_those_of_each_head_and_start_at_one_and_a_half() -> None:
    scores = normal(2, 3, 4, 6)
    start = Entmax("learned").parameters(Shape(3, 3, 6))
    assert start["alpha"].value.shape == (3,)
    keep = torch.ones_like(scores, dtype=torch.bool)
    begun = weights(Entmax("learned"), scores, alpha=start["alpha"].value)
    torch.testing.assert_close(begun, alpha_entmax(scores, keep, 1.5), rtol=1e-6, atol=1e-7)
    ends = weights(Entmax("learned"), scores, alpha=torch.tensor([-50.0, 0.0, 50.0]))
    for head, alpha in enumerate((LOWEST, 1.5, HIGHEST)):
        torch.testing.assert_close(
            ends[:, head], alpha_entmax(scores[:, head], keep[:, head], alpha), rtol=1e-6, atol=1e-7
        )


def test_only_the_learned_alpha_has_something_to_learn() -> None:
    shape = Shape(2, 1, 6)
    assert Method(rule=Entmax(1.5)).parameters(shape) == Method().parameters(shape) == {}
    some = PerHead((Method(rule=Entmax("learned")), Method()))
    assert some.parameters(shape)["rule.alpha"].value.shape == (2,)


@pytest.mark.parametrize("method", [Entmax("learned"), Method(rule=Entmax("learned"))], ids=str)
def test_a_learned_alpha_without_a_model_is_refused(method) -> None:
    with pytest.raises(ValueError, match=r"'entmax' needs the parameter 'alpha', .* crisp\.sparsify"):
        crisp.attention(*self_attention(), method)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (0.9, ValueError, r"alpha must be in \[1, 10\], got 0\.9"),
        (10.5, ValueError, r"alpha must be in \[1, 10\], got 10\.5"),
        (float("nan"), ValueError, r"alpha must be in \[1, 10\], got nan"),
        (1.001, ValueError, r"alpha must be 1 \(the softmax\) or at least 1\.01, got 1\.001"),
        ("1.5", ValueError, r"alpha must be a number of at least 1, or \"learned\", got '1\.5'"),
        (None, TypeError, r"alpha must be a number in \[1, 10\], got None"),
        (True, TypeError, r"alpha must be a number in \[1, 10\], got True"),
    ],
)
def test_a_wrong_alpha_is_refused_with_expected_and_actual(alpha: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Entmax(alpha)
