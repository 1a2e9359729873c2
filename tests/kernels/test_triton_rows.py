"""What the contract of kernels does not ask: tiles, searches, dtypes. Without a GPU, Triton's interpreter runs them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crisp_attention import Dense, Entmax, Method, Threshold, TopK, TopP, Window
from crisp_attention.kernels import reference, triton_rows
from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.ranking import keep_largest
from tests.cases import normal

tl = pytest.importorskip("triton.language", reason="triton is not installed; it is for Linux only")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cuda,
    # numpy's, of the interpreter: 0 / 0 and inf - inf
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULES = {
    "topk": TopK(0.7),
    "topp": TopP(0.637),
    "threshold": Threshold(0.3),
    "dense": Dense(),
}
# the others differ from one of them by what is compared with the threshold alone
SEARCHED = pytest.mark.parametrize("rule", [RULES["topk"], RULES["topp"]], ids=["topk", "topp"])


def in_turn(name: str, *values) -> pytest.MarkDecorator:
    """Parametrize `rule` and `name`: every rule once, the values in turn."""
    return pytest.mark.parametrize(
        ("rule", name),
        [pytest.param(r, values[i % len(values)], id=n) for i, (n, r) in enumerate(RULES.items())],
    )


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch) -> None:
    """So that short sequences have several tiles; a GPU is given those it will have."""
    if DEVICE == "cpu":
        monkeypatch.setattr("crisp_attention.kernels.triton_rows.operators.block_size", lambda *_: 16)


def a_call(
    rule=RULES["topk"], length: int = 19, keys: int = 19, groups: int = 1, dtype=torch.float32, **more
) -> Call:
    query = normal(2, 2, length, 20, dtype=dtype).to(DEVICE)
    key, value = (normal(2, groups, keys, d, seed=d, dtype=dtype).to(DEVICE) for d in (20, 12))
    return Call(query, key, value, Method(rule=rule), scale=0.5, **more)


def with_gradients(call: Call, dtype: torch.dtype, attention=None) -> list[Tensor]:
    """Output and the gradients of query, key and value, in float64, computed in `dtype`."""
    states = [
        each.detach().to(dtype, copy=True).requires_grad_() for each in (call.query, call.key, call.value)
    ]
    call = replace(call, query=states[0], key=states[1], value=states[2])
    output = (attention or by_reference)(call)
    assert output.dtype == dtype
    output.backward(normal(*output.shape, seed=9).to(output))
    return [output.detach().double(), *(each.grad.double() for each in states)]


def by_reference(call: Call) -> Tensor:
    return reference.attention(replace(call, dropout=0.0))[0]


def assert_as_good_as_the_reference(call: Call) -> None:
    found = with_gradients(call, call.query.dtype, triton_rows.attention)
    usual, exact = with_gradients(call, call.query.dtype), with_gradients(call, torch.float64)
    for name, *each, times in zip(
        ("output", "query", "key", "value"), found, usual, exact, (2, 3, 3, 3), strict=True
    ):
        error, allowed = ((one - each[-1]).abs().max().item() for one in each[:2])
        # products of wide heads are longer sums, which GPUs add up one after the other, each without its last 2**-22
        longer = max(call.query.shape[-1] / 64, 1) * (4 if DEVICE == "cuda" else 1)
        least = 2 * longer * torch.finfo(call.query.dtype).eps * each[-1].abs().max().item()
        assert error <= times * max(allowed, least), name


def padding(lengths: list[int], keys: int) -> Tensor:
    return (torch.arange(keys) < torch.tensor(lengths)[:, None])[:, None, None].to(DEVICE)


@in_turn("dtype", *triton_rows.DTYPES)
def test_padding_in_every_dtype(rule, dtype: torch.dtype) -> None:
    assert_as_good_as_the_reference(a_call(rule, dtype=dtype, valid=padding([18, 13], 19)))


@pytest.mark.parametrize("shape", [(2, 1, 17, 19), (1, 2, 17, 19), (2, 2, 1, 19), (1, 1, 17, 1)], ids=str)
def test_any_mask_of_fewer_queries_than_keys(shape: tuple[int, ...]) -> None:
    valid = (normal(*shape, seed=3) > 0.2).to(DEVICE)
    causal = shape[1] == 1
    rule = RULES["topk" if causal else "topp"]
    assert_as_good_as_the_reference(a_call(rule, length=17, valid=valid, causal=causal))


@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 19), (19, 1), (20, 3), (3, 20)])
def test_lengths_of_all_kinds(length: int, keys: int) -> None:
    causal = length < keys
    rule = RULES["topp" if causal else "topk"]
    assert_as_good_as_the_reference(a_call(rule, length=length, keys=keys, causal=causal))


NUMBERS = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, 1e-44, math.inf, -math.inf])


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_exactly_the_k_largest_of_any_numbers_and_the_first_of_equals(row, k: int, seed: int) -> None:
    scores = torch.tensor(row, dtype=torch.float32)[None, None, :, None]
    if seed % 2:  # many of them equal
        scores = scores[:, :, torch.randint(len(row), (40,), generator=torch.Generator().manual_seed(seed))]
    assert_kept(scores.to(DEVICE), k)


@pytest.mark.parametrize(
    ("kind", "k"),
    [
        ("normal", 1),
        ("normal", 299),
        ("exponential", 60),
        ("one outlier", 60),
        ("neighbours", 299),
        ("cauchy", 60),
        ("equal", 60),
    ],
)
def test_exactly_the_k_largest_of_many(kind: str, k: int) -> None:
    scores = normal(300, dtype=torch.float32)
    if kind == "exponential":
        scores = (8 * scores).exp()
    elif kind == "one outlier":
        scores[7] = 1e30
    elif kind == "neighbours":
        scores = (scores.argsort().int() + 0x3F800000).view(torch.float32)
    elif kind == "cauchy":
        scores = 1 / scores
    elif kind == "equal":
        scores = scores * 0
    assert_kept(scores[None, None, :, None].to(DEVICE), k)


def assert_kept(scores: Tensor, k: int) -> None:
    """A query of 1 makes every key its own score."""
    from crisp_attention.kernels.triton_rows import operators

    keys, row = scores.shape[2], scores[..., 0]
    k = min(k, keys)
    output, *_, cut, last = operators.forward(
        torch.ones(1, 1, 1, 1, device=DEVICE), scores, torch.ones_like(scores), None,
        torch.full((keys + 1,), k, dtype=torch.int32, device=DEVICE), None,
        rule="topk", number=0.0, scale=1.0, causal=False, dropout=0.0,
    )  # fmt: skip
    if not row.max().isfinite():  # the row is NaN, whatever it keeps: nothing is searched for in it
        assert output.isnan().all()
        return
    place = torch.arange(keys, device=DEVICE)
    kept = (row > cut) | ((row == cut) & (place <= last))
    seen = torch.ones_like(kept)
    assert kept.equal(keep_largest(row, seen, torch.full_like(cut, k, dtype=torch.int64).reshape(1, 1, 1)))


@pytest.mark.parametrize("rule", [TopK(0.7), TopK(0.99, min_keep=4), TopK(keep=9), TopK(0)], ids=str)
def test_k_comes_from_the_keys_that_a_row_sees(rule: TopK) -> None:
    call = a_call(rule, causal=True)
    value = torch.eye(19, device=DEVICE).expand(2, 1, -1, -1)
    weights = triton_rows.attention(replace(call, value=value))
    seen = torch.arange(1, 20, device=DEVICE)
    assert ((weights > 0).sum(-1) == rule.count_of(seen)).all()


@pytest.mark.parametrize("scale", [1e4, 1e-38])
@SEARCHED
def test_very_large_and_very_small_inputs(rule, scale: float) -> None:
    call = a_call(rule)
    query = call.query.round() * scale
    query[:, :, 3] = query[:, :, 3].abs().amax()
    key = call.key.round()
    key[:, :, 1:4] = key[:, :, 1:2].abs() + 3  # three that are equal, and the largest of that row
    assert_as_good_as_the_reference(replace(call, query=query, key=key))


@SEARCHED
def test_inputs_in_any_memory_layout(rule) -> None:
    call = a_call(rule, groups=2)
    turned = {
        "query": call.query.transpose(1, 2).contiguous().transpose(1, 2),
        "key": call.key.mT.contiguous().mT,
        "value": call.value[:, :1].expand(-1, 2, -1, -1),
    }
    assert_as_good_as_the_reference(replace(call, **turned))


@pytest.mark.parametrize(("width", "value_width"), [(256, 256), (16, 200)])
def test_heads_as_wide_as_they_get(width: int, value_width: int) -> None:
    query, key = (normal(1, 1, 19, width, seed=seed, dtype=torch.float32).to(DEVICE) for seed in range(2))
    value = normal(1, 1, 19, value_width, dtype=torch.float32).to(DEVICE)
    assert_as_good_as_the_reference(
        Call(query, key, value, Method(rule=RULES["topk"]), scale=0.1, causal=True)
    )


def test_dropout_follows_the_global_seed_and_draws_nothing_without() -> None:
    call, outputs = a_call(dropout=0.5), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(triton_rows.attention(call))
    assert outputs[0].equal(outputs[1])
    assert not outputs[0].equal(outputs[2])
    before = torch.get_rng_state()
    triton_rows.attention(a_call())
    assert torch.get_rng_state().equal(before)


def test_torch_sees_the_operators() -> None:
    from crisp_attention.kernels.triton_rows import operators

    call = a_call(valid=padding([18, 13], 19).expand(-1, 2, 19, -1))
    states = [each.clone().requires_grad_() for each in (call.query, call.key, call.value)]
    numbers = {"rule": "threshold", "number": -1.0, "scale": 0.5, "causal": True, "dropout": 0.0}
    torch.library.opcheck(operators.forward, (*states, call.valid, None, None), numbers)
    compiled = torch.compile(triton_rows.attention, backend="aot_eager", fullgraph=True)
    call = replace(a_call(), query=states[0], key=states[1], value=states[2])
    torch.testing.assert_close(compiled(call), triton_rows.attention(call))


def _is_real(value) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": normal(2, 2, 5, 20)}, "the dtype float64"),
        ({"query": torch.ones(2, 2, 5, 257)}, "heads wider than 256"),
        ({"query": torch.ones(2, 2, 5, 20, device="meta")}, "tensors on meta"),
        ({"method": Method(rule=Entmax())}, "the rule entmax"),
        ({"method": Method(Window(3), TopK())}, "the layout window"),
        ({"method": PerHead((Method(), Method(rule=TopK())))}, "a method for each head"),
        ({"bias": torch.zeros(1)}, "a bias"),
        ({"softcap": 2.0}, "a softcap"),
        ({"sinks": torch.zeros(2)}, "attention sinks"),
    ],
)
def test_it_says_what_it_lacks(change: dict, words: str) -> None:
    change = {n: each.to(DEVICE) if _is_real(each) else each for n, each in change.items()}
    assert triton_rows.lacks(a_call()) is None
    assert triton_rows.lacks(replace(a_call(), **change)) == words
