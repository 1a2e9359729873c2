"""`crisp.attention` beside torch's scaled_dot_product_attention, argument by argument."""

import inspect
import re

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Method, RandomK, TopK
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import AnyMethod, as_method
from tests.cases import normal, self_attention

BATCH, HEADS, GROUPS, LENGTH, WIDTH = 2, 4, 2, 7, 6  # of `self_attention`
KEYS = torch.arange(LENGTH) < torch.tensor([LENGTH, 4])[:, None, None, None]
PAIRS = torch.rand(BATCH, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.6
HOLES = PAIRS.index_fill(2, torch.tensor([3]), False)
BIAS = normal(HEADS, LENGTH, LENGTH, seed=4, dtype=torch.float32)

ARGUMENTS = {
    "nothing": {},
    "a mask of keys": {"attn_mask": KEYS},
    "a mask of pairs": {"attn_mask": PAIRS},
    "a mask of two dimensions": {"attn_mask": PAIRS[0, 0]},
    "rows that see nothing": {"attn_mask": HOLES},
    "an additive mask": {"attn_mask": BIAS},
    "an additive mask that forbids": {"attn_mask": BIAS.masked_fill(~PAIRS[0], torch.finfo().min)},
    "an additive mask of -inf": {"attn_mask": BIAS.masked_fill(~PAIRS[0], -torch.inf)},
    "causal": {"is_causal": True},
    "a scale": {"scale": 0.7},
    "a scale of zero": {"scale": 0.0},
    "a negative scale": {"scale": -0.3},
    "no dropout": {"dropout_p": 0.0},
    "all": {"attn_mask": PAIRS, "dropout_p": 0.0, "is_causal": False, "scale": 0.2, "enable_gqa": True},
}
backends = pytest.mark.parametrize("backend", ["auto", "reference"])


def outcome(function, *inputs: Tensor, **options) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    output = function(*leaves, **options)
    output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def dense(*inputs: Tensor, **options) -> Tensor:
    return crisp.attention(*inputs, Dense(), **options)


def torchs(*inputs: Tensor, **options) -> Tensor:
    return scaled_dot_product_attention(*inputs, **{"enable_gqa": True, **options})


@backends
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_every_argument_means_what_it_means_in_torch(arguments: dict, backend: str) -> None:
    inputs = self_attention(dtype=torch.float32)
    found = outcome(dense, *inputs, backend=backend, **arguments)
    for ours, theirs in zip(found, outcome(torchs, *inputs, **arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@backends
@pytest.mark.parametrize("arguments", [{}, {"is_causal": True}], ids=str)
@pytest.mark.parametrize("keys", [3, 12], ids=["fewer keys", "more keys"])
def test_as_many_queries_as_keys_are_not_needed(arguments: dict, keys: int, backend: str) -> None:
    query, *_ = self_attention(dtype=torch.float32)
    key, value = (normal(BATCH, GROUPS, keys, WIDTH, seed=s, dtype=torch.float32) for s in (5, 6))
    found = outcome(dense, query, key, value, backend=backend, **arguments)
    for ours, theirs in zip(found, outcome(torchs, query, key, value, **arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_arguments_after_the_method_are_torchs_with_torchs_defaults() -> None:
    said = re.search(r"\((.*?)\) -> Tensor", scaled_dot_product_attention.__doc__ or "", re.DOTALL)
    assert said is not None
    theirs = dict(each.split("=") for each in re.sub(r"\s", "", said[1]).split(",")[3:])
    ours = inspect.signature(crisp.attention).parameters
    assert {name: str(ours[name].default) for name in theirs} == theirs
    assert list(ours) == ["query", "key", "value", "method", *theirs, "generator", "backend"]
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[4:])


def test_a_mask_in_torchs_place_is_refused_and_not_taken_for_something_else() -> None:
    with pytest.raises(TypeError, match="4 positional arguments but 6 were given"):
        crisp.attention(*self_attention(), Dense(), PAIRS, 0.1)


def test_where_torch_refuses_a_mask_beside_the_causal_flag_both_forbid() -> None:
    inputs, causal = self_attention(dtype=torch.float64), torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    with pytest.raises(RuntimeError, match="attn_mask should not be set when is_causal=True"):
        torchs(*inputs, attn_mask=PAIRS, is_causal=True)
    found = crisp.attention(*inputs, Dense(), attn_mask=PAIRS, is_causal=True)
    torch.testing.assert_close(found, torchs(*inputs, attn_mask=PAIRS & causal))


@pytest.mark.parametrize("method", [Dense(), TopK(0.5), BlockTopK(0.5, block_size=2)], ids=str)
def test_grouped_heads_need_no_permission(method: AnyMethod) -> None:
    q, k, v = self_attention()
    with pytest.raises(RuntimeError, match="must match"):
        scaled_dot_product_attention(q, k, v)
    wanted = crisp.attention(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), method)
    for enabled in (False, True):
        assert crisp.attention(q, k, v, method, enable_gqa=enabled).equal(wanted)


@backends
def test_dropout_sets_its_share_of_the_weights_to_zero_and_scales_the_rest_as_torch_does(
    backend: str,
) -> None:
    """With unit vectors as values the output is the weights."""
    query, key, _ = self_attention(batch=64, groups=4, dtype=torch.float32)
    unit = torch.eye(LENGTH).expand(64, HEADS, -1, -1)
    plain = scaled_dot_product_attention(query, key, unit)
    for weights in (
        crisp.attention(query, key, unit, Dense(), dropout_p=0.25, backend=backend),
        scaled_dot_product_attention(query, key, unit, dropout_p=0.25),
    ):
        stay = weights > 0
        torch.testing.assert_close(weights[stay], plain[stay] / 0.75, rtol=1e-5, atol=1e-6)
        assert stay.float().mean().item() == pytest.approx(0.75, abs=0.02)


# what draws, and in which kernel
DRAWING = {
    "random keys": (RandomK(0.6), 0.0, "auto"),
    "dropout in the CPU kernel": (TopK(0.4), 0.3, "cpu"),
    "dropout in blocks": (BlockTopK(0.5, block_size=16), 0.3, "cpu"),
    "dropout in the reference": (TopK(0.4), 0.3, "reference"),
    "random keys and dropout": (RandomK(0.6), 0.3, "auto"),
    "heads in several kernels": (
        PerHead(tuple(map(as_method, (TopK(0.4), crisp.Window(3), crisp.TopP(0.8), Dense())))),
        0.3,
        "auto",
    ),
    "dropout in Triton": pytest.param((TopK(0.4), 0.3, "triton"), marks=pytest.mark.slow),
}


@pytest.mark.parametrize("drawing", DRAWING.values(), ids=DRAWING)
def test_every_draw_comes_from_the_generator_given_or_else_from_the_global_one(drawing: tuple) -> None:
    method, dropout, backend = drawing
    inputs = self_attention(batch=1, length=20, dtype=torch.float32)

    def call(generator: torch.Generator | None = None) -> list[Tensor]:
        options = {"dropout_p": dropout, "generator": generator, "backend": backend}
        return outcome(lambda q, k, v: crisp.attention(q, k, v, method, **options), *inputs)

    def seeded(seed: int) -> list[Tensor]:
        return call(torch.Generator().manual_seed(seed))

    state, first = torch.get_rng_state(), seeded(1)
    assert all(a.equal(b) for a, b in zip(first, seeded(1), strict=True))
    assert not first[0].equal(seeded(2)[0])
    assert torch.get_rng_state().equal(state)
    one = torch.Generator().manual_seed(1)
    assert call(one)[0].equal(first[0])
    assert not call(one)[0].equal(first[0])
    torch.manual_seed(3)
    again = [call()[0] for _ in range(2)]
    torch.manual_seed(3)
    assert call()[0].equal(again[0])
    assert not again[1].equal(again[0])


def test_what_draws_nothing_leaves_the_generator_as_it_is() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    plain = crisp.attention(*self_attention(), TopK(0.5))
    assert crisp.attention(*self_attention(), TopK(0.5), generator=generator).equal(plain)
    assert generator.get_state().equal(before)


RANDOM = Method(rule=RandomK(0.5))


class Drawing(torch.nn.Module):
    """A draw from one generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, query: Tensor) -> Tensor:
        return crisp.attention(query, query, query, RANDOM, generator=self.generator)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_generator_that_a_program_could_not_hold_is_refused_by_name() -> None:
    query, module = normal(1, 2, 8, 4, dtype=torch.float32), Drawing()
    with pytest.raises(ValueError, match=r"generator .* torch\.export; leave it out"):
        torch.export.export(module, (query,))
    with pytest.raises(ValueError, match=r"generator .* torch\.jit\.trace; leave it out"):
        torch.jit.trace(module, query)
    with pytest.raises(RuntimeError, match=r"generator .* torch\.compile; leave it out"):
        torch.compile(module, fullgraph=True, backend="eager")(query)
    # where the graph may break, it is drawn from
    module.generator.manual_seed(1)
    compiled = torch.compile(module, backend="eager")(query)
    module.generator.manual_seed(1)
    assert compiled.equal(module(query))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(("method", "dropout_p"), [(RANDOM, 0.0), (TopK(0.5), 0.3)], ids=["keys", "dropout"])
def test_a_generator_that_checkpointing_would_draw_from_twice_is_refused_by_name(
    method: AnyMethod, dropout_p: float, use_reentrant: bool
) -> None:
    inputs = [each.requires_grad_() for each in self_attention(dtype=torch.float32)]

    def gradient(generator: torch.Generator | None, *, checkpointed: bool) -> Tensor:
        def call(*states: Tensor) -> Tensor:
            return crisp.attention(*states, method, dropout_p=dropout_p, generator=generator)

        torch.manual_seed(0)
        output = checkpoint(call, *inputs, use_reentrant=use_reentrant) if checkpointed else call(*inputs)
        inputs[0].grad = None
        output.square().sum().backward()  # torch.autograd.grad is not for reentrant checkpointing
        return inputs[0].grad

    assert gradient(None, checkpointed=True).equal(gradient(None, checkpointed=False))
    with pytest.raises(ValueError, match="generator cannot be drawn from during a backward pass"):
        gradient(torch.Generator().manual_seed(0), checkpointed=True)


def test_what_is_no_generator_is_refused() -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got 3"):
        crisp.attention(*self_attention(), RandomK(0.5), generator=3)
