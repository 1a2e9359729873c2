"""The CPU kernel of linear attention to marginal blocks against its definition in float64, and where it is used."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import SparseLinear, TopK
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.cpu.linear import launch, operators
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from tests.cases import normal

MAPS = ("softmax", "elu", "relu", "hedgehog")
COMBINATIONS = ("project", "alpha", "sum", "alone")


def call_of(
    method: Method, batch=2, heads=4, groups=2, length=120, width=16, lengths=None, dtype=torch.float32
) -> Call:
    """A call with parameters that are not those of the start; `lengths` of the examples, padded on the left."""
    query, key, value = (
        normal(batch, each, length, width, seed=seed, dtype=dtype)
        for seed, each in enumerate((heads, groups, groups))
    )
    valid = None
    if lengths is not None:
        real = torch.arange(length) >= length - torch.tensor(lengths)[:, None]
        valid = real[:, None, None].expand(batch, 1, 1, length)
    parameters = {
        name: 0.3 * normal(*each.value.shape, seed=7 + number, dtype=dtype) + each.value
        for number, (name, each) in enumerate(method.parameters(Shape(heads, groups, width)).items())
    }
    return Call(query, key, value, method, width**-0.5, valid, parameters=parameters)


def results(call: Call, backend: str) -> list[Tensor]:
    """The output at real tokens and all gradients, in float64."""
    states = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    learned = {name: each.clone().requires_grad_() for name, each in call.parameters.items()}
    call = replace(call, query=states[0], key=states[1], value=states[2], parameters=learned)
    output, _ = dispatch.attention(call, backend)
    if call.valid is not None:
        output = output * call.valid[:, :, 0, :, None]
    scale = normal(*output.shape, seed=3, dtype=output.dtype)
    gradients = torch.autograd.grad((scale * output).sum(), [*states, *learned.values()])
    return [output.detach().double(), *(each.double() for each in gradients)]


def exact(call: Call) -> Call:
    doubled = {name: each.double() for name, each in call.parameters.items()}
    states = {name: getattr(call, name).double() for name in ("query", "key", "value")}
    return replace(call, **states, parameters=doubled)


def check(call: Call) -> None:
    ours, plain, true = results(call, "auto"), results(call, "reference"), results(exact(call), "reference")
    for number, (one, other, right) in enumerate(zip(ours, plain, true, strict=True)):
        allowed = 4 * (other - right).abs().max() + 1e-6 * right.abs().max()
        assert (one - right).abs().max() <= allowed, number


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """The block sizes of the kernel's calls."""
    seen: list[int] = []
    for name in ("linear", "sparse_linear"):
        real = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *given, real=real: seen.append(given[-2]) or real(*given))
    return seen


@pytest.mark.parametrize("feature_map", MAPS)
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_output_and_every_gradient_are_those_of_the_definition(feature_map: str, combine: str, used) -> None:
    check(call_of(SparseLinear(0.2, 0.1, 16, feature_map, combine=combine), lengths=(120, 75)))
    assert used == [16]


@pytest.mark.parametrize("critical", [0.1, 0.6])  # most blocks are marginal, and most are not
@pytest.mark.parametrize(
    "shape",
    [
        {"length": 1},
        {"length": 16, "heads": 1, "groups": 1},
        {"length": 129, "width": 48, "groups": 4},
        {"length": 333, "batch": 1, "heads": 6, "groups": 1, "width": 80},
    ],
    ids=str,
)
def test_shapes(critical: float, shape: dict[str, int]) -> None:
    check(call_of(SparseLinear(critical, 0.2, 16), **shape))


@pytest.mark.parametrize("size", [9, 24, 64])
def test_beside_other_kernels_and_layouts(size: int, used) -> None:
    check(call_of(SparseLinear(0.2, 0.1, size), length=150))
    check(call_of(SparseLinear(0.3, 0.1, size, scope="all", combine="alone"), length=150))
    assert used == [size] * 2


def test_many_pairs_one_after_another(monkeypatch) -> None:
    call = call_of(SparseLinear(0.2, 0.1, 16), batch=5)
    whole = results(call, "auto")
    monkeypatch.setattr(launch, "HELD", 1)  # sums of one key head at a time
    for one, other in zip(results(call, "auto"), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=2e-5)


@pytest.mark.parametrize("factor", [10, 50, 100])
@pytest.mark.parametrize(("length", "width"), [(128, 64), (64, 16)])
def test_features_that_are_almost_zero_in_what_is_chosen(factor: float, length: int, width: int) -> None:
    call = call_of(
        SparseLinear(0.3, 0.1, 16, combine="sum"), batch=1, heads=2, groups=1, length=length, width=width
    )
    call.query.mul_(factor)
    call.key.mul_(factor)
    check(call)


@pytest.mark.parametrize("number", [1e9, torch.nan, torch.inf])
def test_numbers_in_a_block_that_is_not_chosen_leave_no_trace(number: float) -> None:
    query, key, value = (normal(1, 1, 320, 16, seed=seed, dtype=torch.float32) for seed in range(3))
    marginal = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    marginal[..., 0] = False  # taken from the sum of all, if it can be
    given = marginal, None, None, None, 16, 0
    plain = operators.linear(query, key, value, *given)[0]
    for states in (value, key):
        states[:, :, :16] = number
        torch.testing.assert_close(operators.linear(query, key, value, *given)[0], plain)


def test_the_gradients_of_weights_have_the_same_bits_whatever_the_order_of_threads() -> None:
    call = call_of(SparseLinear(0.2, 0.1, 16), heads=3, groups=3, length=501, width=32)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        first = results(call, "auto")
        for _ in range(15):
            assert all(one.equal(other) for one, other in zip(first, results(call, "auto"), strict=True))
    finally:
        torch.set_num_threads(before)


def test_heads_with_methods_of_their_own() -> None:
    heads = (
        SparseLinear(0.2, 0.1, 16),
        crisp.Method(rule=TopK(0.5)),
        SparseLinear(0.3, 0.2, 32, combine="sum"),
    )
    call = call_of(SparseLinear(0.2, 0.1, 16), batch=1, heads=3, groups=3)
    check(replace(call, method=crisp.PerHead(heads)))


def test_a_learned_temperature_does_not_reach_the_linear_part() -> None:
    layout, branch = SparseLinear(0.2, 0.1, 16).layout, crisp.Linear(0.1)
    for temperature in (2.0, "learned"):
        check(call_of(crisp.Method(layout, crisp.Dense(temperature=temperature), branch)))


def test_where_it_is_not_used(used) -> None:
    method = SparseLinear(0.3, 0.1, 16)
    for call, backend in (
        (call_of(method), "reference"),
        (call_of(method, dtype=torch.float64), "auto"),
        (call_of(method, width=12), "auto"),
        (call_of(SparseLinear(0.3, 0.1, 12), length=32), "auto"),  # so short that pairs take less time
        (replace(call_of(method), causal=True), "auto"),
        (call_of(SparseLinear(0.3, 0.1, 4)), "auto"),
    ):
        dispatch.attention(call, backend)
    assert not used
    dispatch.attention(call_of(crisp.Method(rule=TopK(0.5), branch=crisp.Linear(scope="all"))))
    assert not used  # a layout without blocks


def test_second_derivatives_name_the_alternative() -> None:
    call = call_of(SparseLinear(0.3, 0.1, 16))
    call.query.requires_grad_()
    output = dispatch.attention(call)[0]
    (gradient,) = torch.autograd.grad(output.square().sum(), call.query, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        gradient.sum().backward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is:DeprecationWarning")
def test_compiled_in_one_graph() -> None:
    call = call_of(SparseLinear(0.3, 0.1, 16), lengths=(120, 75))

    def attend(query: Tensor) -> Tensor:
        return dispatch.attention(replace(call, query=query))[0]

    given = call.query.clone().requires_grad_()
    plain, compiled = attend(given), torch.compile(attend, fullgraph=True)(given)
    torch.testing.assert_close(compiled, plain)
    gradients = [torch.autograd.grad(each.square().sum(), given)[0] for each in (plain, compiled)]
    torch.testing.assert_close(*gradients)


def test_torch_sees_the_operators_as_they_are(monkeypatch) -> None:
    tests, seen = ("test_schema", "test_autograd_registration", "test_faketensor"), []
    for name, combine in (("sparse_linear", "project"), ("linear", "alpha")):
        call = call_of(SparseLinear(0.3, 0.1, 16, combine=combine))
        states = {each: getattr(call, each).requires_grad_() for each in ("query", "key", "value")}
        real = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *given, real=real: seen.append(given) or real(*given))
        dispatch.attention(replace(call, **states))
        torch.library.opcheck(real, seen.pop(), test_utils=tests)
