from collections.abc import Callable, Iterable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Method, PerHead, RandomK, TopK, TopP, Window
from crisp_attention.methods.method import as_method
from tests.cases import normal, self_attention
from tests.table import METHODS

ALL = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
MASK = (torch.arange(7) < torch.tensor([7, 5])[:, None])[:, None, None]


def seeded(method: Method, *inputs: Tensor, function: Callable = crisp.attention, **options) -> Tensor:
    """One call right after seeding torch, so that `RandomK` draws the same in each."""
    torch.manual_seed(3)
    return function(*inputs, method, **options)


@pytest.mark.parametrize("method", [TopK(0), RandomK(0), Window(13), Window(1, 7)], ids=str)
def test_every_method_that_drops_nothing_is_dense(method: object) -> None:
    inputs = self_attention()
    assert crisp.attention(*inputs, method, attn_mask=MASK).equal(
        crisp.attention(*inputs, Dense(), attn_mask=MASK)
    )


@ALL
def test_the_causal_flag_and_a_mask_combine(method: Method) -> None:
    inputs = self_attention()
    both = MASK & torch.ones(7, 7, dtype=torch.bool).tril()
    assert seeded(method, *inputs, attn_mask=MASK, is_causal=True).equal(
        seeded(method, *inputs, attn_mask=both)
    )


@ALL
def test_autocast_changes_no_bit(method: Method) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        inputs = self_attention(dtype=dtype)
        plain = seeded(method, *inputs, attn_mask=MASK)
        with torch.autocast("cpu", torch.bfloat16):
            assert seeded(method, *inputs, attn_mask=MASK).equal(plain), dtype


def test_scores_are_not_rounded_to_the_dtype_of_the_model() -> None:
    query = torch.tensor([[1.0, 1 / 256]], dtype=torch.bfloat16)[None, None]
    key = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.bfloat16)[None, None]  # 1 and 1 + 1/256
    value = torch.tensor([[0.0], [1.0]], dtype=torch.bfloat16)[None, None]
    assert crisp.attention(query, key, value, TopK(0.5), scale=1.0).item() == 1


@ALL
def test_nan_is_not_turned_into_numbers(method: Method) -> None:
    for place in ("query", "key", "value", "mask"):
        inputs = dict(zip(("query", "key", "value"), self_attention(length=4), strict=True))
        inputs["mask"] = torch.zeros(2, 4, 4, 4, dtype=torch.float64)
        inputs[place][:] = torch.nan
        *states, mask = inputs.values()
        assert seeded(method, *states, attn_mask=mask).isnan().all(), place


def test_one_nan_key_is_not_quietly_dropped_by_topk() -> None:
    q, k, v = self_attention()
    k[..., 3, 0] = torch.nan
    assert crisp.attention(q, k, v, TopK(0.5)).isnan().all()


@ALL
def test_huge_and_denormal_inputs_still_average(method: Method) -> None:
    for dtype, size in product((torch.float64, torch.float32, torch.bfloat16, torch.float16), (1e4, 1e-40)):
        q, k, _ = self_attention(dtype=dtype)
        output = seeded(method, q * size, k * size, torch.ones_like(k), attn_mask=MASK)
        torch.testing.assert_close(output, torch.ones_like(output), atol=1e-2, rtol=0)


@ALL
def test_any_memory_layout_gives_the_same_and_no_input_is_written_to(method: Method) -> None:
    q, k, v = self_attention(groups=1)
    k, v = k[:1], v[:1]
    wanted = seeded(method, q, k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1), attn_mask=MASK)
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    shared = (strided, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1))
    before = [t.clone() for t in shared]
    assert seeded(method, *shared, attn_mask=MASK.expand(2, 4, 7, 7)).equal(wanted)
    assert all(t.equal(b) for t, b in zip(shared, before, strict=True))


RULE, LAYOUT = TopK(sparsity=0.6), BlockTopK(0.5, block_size=16)
HEADS = PerHead((Method(rule=RULE), Method(rule=TopP(0.7)), Method(Window(3)), Method(rule=RULE)))
WAYS_TO_SAY_IT = {
    "a rule": lambda: RULE,
    "a layout": lambda: LAYOUT,
    "a method for each head": lambda: HEADS,
    "a rule made on the spot": lambda: TopK(sparsity=0.6),
    "a rule without options": lambda: Dense(),
    "a layout for the reference": lambda: Window(3),
    "a method of defaults": lambda: Method(),
    "a method of both": lambda: Method(Window(5), TopK(0.5)),
}


def compiles_into_one_graph(ways: Iterable[Callable], backend: str, find: Callable) -> None:
    """`find` gives of a function the numbers that must be the same whether it is compiled or not."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        return [crisp.attention(query, key, value, method()) for method in ways]

    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    results = []
    for function in (compiled, attend):
        states = [t.requires_grad_() for t in self_attention(length=20, dtype=torch.float32)]
        torch.manual_seed(3)
        results.append(find(function(*states), states))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_every_method_and_every_way_to_say_one_compile_into_one_graph() -> None:
    ways = [*WAYS_TO_SAY_IT.values(), *(partial(as_method, method) for method in METHODS.values())]
    compiles_into_one_graph(ways, "eager", lambda outputs, _: outputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    ["a layout", "a rule made on the spot", "a method for each head"],
)
def test_gradients_of_a_compiled_call_are_those_of_a_plain_one(way: str) -> None:
    def gradients(outputs: list[Tensor], states: list[Tensor]) -> list[Tensor]:
        return [*outputs, *torch.autograd.grad(outputs[0].square().sum(), states)]

    compiles_into_one_graph([WAYS_TO_SAY_IT[way]], "aot_eager", gradients)


@pytest.mark.parametrize("method", [Dense(), TopK(0.6)], ids=str)
def test_padded_keys_change_nothing_in_cross_attention(method: object) -> None:
    query, (_, key, value) = normal(2, 4, 9, 6), self_attention()
    mask = torch.nn.functional.pad(torch.ones(1, 1, 1, 7, dtype=torch.bool), (2, 3))
    padded = [torch.nn.functional.pad(t, (0, 0, 2, 3), value=50.0) for t in (key, value)]
    output = crisp.attention(query, *padded, method, attn_mask=mask)
    torch.testing.assert_close(output, crisp.attention(query, key, value, method), atol=1e-12, rtol=1e-12)


ONES = torch.ones(2, 4, 5, 6)
ERRORS = {
    "a flat query": ({"query": ONES[0]}, ValueError, r"query .* \(B, H, L, D\), got \(4, 5, 6\)"),
    "a flat value": ({"value": ONES[0]}, ValueError, r"value .* \(B, H, L, D\), got \(4, 5, 6\)"),
    "two dtypes": (
        {"key": ONES.double()},
        TypeError,
        r"one floating dtype, got torch\.float32 and torch\.float64",
    ),
    "whole numbers": (
        dict.fromkeys(("query", "key", "value"), ONES.long()),
        TypeError,
        r"one floating dtype, got torch\.int64",
    ),
    "other width": ({"key": ONES[..., :4]}, ValueError, r"key .*\(2, G, S, 6\).*, got \(2, 4, 5, 4\)"),
    "other batch": ({"key": ONES[:1]}, ValueError, r"key .*\(2, G, S, 6\).*, got \(1, 4, 5, 6\)"),
    "no keys": ({"key": ONES[:, :, :0]}, ValueError, r"S > 0 .*, got \(2, 4, 0, 6\)"),
    "heads that do not divide": ({"key": ONES[:, :3]}, ValueError, r"G dividing 4, got \(2, 3, 5, 6\)"),
    "value of other length": (
        {"value": ONES[:, :, :3]},
        ValueError,
        r"value must have shape \(2, 4, 5, Dv\), got \(2, 4, 3, 6\)",
    ),
    "a mask of other length": (
        {"attn_mask": torch.ones(2, 1, 5, 4, dtype=torch.bool)},
        ValueError,
        r"attn_mask .* broadcast to \(2, 4, 5, 5\), got \(2, 1, 5, 4\)",
    ),
    "a mask of whole numbers": (
        {"attn_mask": torch.ones(2, 1, 1, 5, dtype=torch.long)},
        TypeError,
        r"attn_mask must be bool .*, got torch\.int64",
    ),
    "all dropped": ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1\.0"),
    "negative dropout": ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0, 1\), got -0\.1"),
    "dropout in words": ({"dropout_p": "0.1"}, TypeError, r"dropout_p must be a number, got '0\.1'"),
    "a scale in words": ({"scale": "auto"}, TypeError, r"scale must be a number, got 'auto'"),
    "a scale that learns": (
        {"scale": torch.tensor(0.5, requires_grad=True)},
        TypeError,
        r"scale must be a number, got tensor\(0\.5.*; multiply query by a learned scale",
    ),
    "a mask in the place of a flag": (
        {"is_causal": ONES[0, 0]},
        TypeError,
        "is_causal must be True or False, got ten",
    ),
    "a flag in words": ({"enable_gqa": "no"}, TypeError, "enable_gqa must be True or False, got 'no'"),
    "a mask as a list": ({"attn_mask": [[True]]}, TypeError, "attn_mask must be a tensor, got list"),
    "an array": ({"query": ONES.numpy()}, TypeError, "query must be a tensor, got ndarray"),
    "keys elsewhere": ({"key": ONES.to("meta")}, ValueError, "key must be on cpu, where query is, got meta"),
    "no method": ({"method": "topk"}, TypeError, r"expected a method such as crisp\.TopK.*, got 'topk'"),
    "more queries than keys in a window": (
        {"method": Window(3), "key": ONES[:, :, :3], "value": ONES[:, :, :3]},
        ValueError,
        r"'window' .* at most as many queries as keys, got 5 queries and 3 keys",
    ),
}


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_arguments_are_refused_with_expected_and_actual(
    wrong: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        crisp.attention(**{"query": ONES, "key": ONES, "value": ONES, "method": TopK(0.5), **wrong})


@ALL
def test_shapes_without_memory_or_numbers(method: Method) -> None:
    q, k, v = self_attention()
    meta = crisp.attention(*(each.to("meta") for each in (q, k, v)), method, attn_mask=MASK.to("meta"))
    assert (meta.device.type, meta.shape) == ("meta", (*q.shape[:3], v.shape[3]))
    for query, key, value in ((q[:0], k[:0], v[:0]), (q[:, :, :0], k, v), (q, k, v[..., :0])):
        assert crisp.attention(query, key, value, method).shape == (*query.shape[:3], value.shape[3])


def test_heads_of_no_width_weigh_their_keys_alike() -> None:
    _, _, value = self_attention()
    empty = value.new_empty(*value.shape[:3], 0)
    mean = value.mean(dim=2, keepdim=True).expand_as(value)
    torch.testing.assert_close(crisp.attention(empty, empty, value, Dense()), mean)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if not m.uses_seed], ids=lambda m: m.spec)
def test_forward_derivatives_and_batched_calls_see_the_selection_of_every_method(method: Method) -> None:
    q, k, v = self_attention()

    def attend(query: Tensor) -> Tensor:
        return crisp.attention(query, k, v, method, attn_mask=MASK)

    direction = normal(*q.shape, seed=7)
    _, slope = torch.func.jvp(attend, (q,), (direction,))
    numeric = (attend(q + 1e-6 * direction) - attend(q - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-7)
    many = torch.stack([q, -q, 2 * q])
    each = torch.stack([attend(one) for one in many])
    torch.testing.assert_close(torch.func.vmap(attend)(many), each, rtol=1e-12, atol=1e-12)


def test_a_method_for_each_head() -> None:
    q, k, v = self_attention()
    methods = (TopK(0.6), Dense(), Window(3), TopK(0.6))
    output = crisp.attention(q, k, v, PerHead(tuple(map(as_method, methods))))
    for head, method in enumerate(methods):
        assert output[:, head].equal(crisp.attention(q, k, v, method)[:, head])
    with pytest.raises(ValueError, match="query has 4 heads, the method is for 1"):
        crisp.attention(q, k, v, PerHead((as_method(Dense()),)))
