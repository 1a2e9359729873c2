"""Scores are multiplied by a rule's temperature, fixed or learned by each head, before anything else is done."""

from dataclasses import replace

import pytest
import torch

import crisp_attention as crisp
from crisp_attention import BlockTopK, Dense, Method, PerHead, RandomK, TopK, TopP, Window, parse
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.methods.rules.base import Rule
from crisp_attention.methods.temperature import HIGHEST
from tests.cases import SEED, attention, normal, self_attention
from tests.models.tiny import BATCH, distilbert, logits, noisy
from tests.table import METHODS


@pytest.mark.parametrize(
    "method", [pytest.param(each, id=name) for name, each in METHODS.items() if not each.has_branch]
)
def test_it_is_that_of_the_queries(method: Method) -> None:
    query, key, value = self_attention()
    sharper = replace(method, rule=replace(method.rule, temperature=3.0))
    plain = replace(method, rule=replace(method.rule, temperature=1))
    found = attention(query, key, value, sharper, scale=0.5, seed=SEED)
    wanted = attention(query * 3.0, key, value, plain, scale=0.5, seed=SEED)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def call(method, parameters: dict) -> Call:
    query, key, value = (normal(2, 4, 64, 32, seed=seed, dtype=torch.float32) for seed in (1, 2, 3))
    return Call(query, key, value, method, scale=32**-0.5, parameters=parameters)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", [None, BlockTopK(0.5, block_size=16)], ids=["full", "blocks"])
def test_each_head_has_its_own_where_it_is_learned(backend, layout) -> None:
    rule = TopK(0.5, temperature="learned")
    method = Method(rule=rule) if layout is None else Method(layout, rule)
    raw = torch.tensor([0.0, 0.02, -0.02, 50.0], requires_grad=True)
    given = call(method, {"rule.temperature": raw})
    output = dispatch.attention(given, backend)[0]
    limit = torch.tensor(HIGHEST).log()
    for head, temperature in enumerate((limit * torch.tanh(25 / limit * raw)).exp().tolist()):
        alone = replace(method, rule=replace(rule, temperature=temperature))
        wanted = dispatch.attention(given.of([head], alone), backend)[0]
        torch.testing.assert_close(output[:, head : head + 1], wanted, rtol=1e-4, atol=1e-5)
    assert temperature == pytest.approx(HIGHEST)
    output.square().sum().backward()
    assert (raw.grad[:3] != 0).all()


def test_heads_of_one_layer_may_have_some_fixed_and_some_learned() -> None:
    rules = (
        TopK(0.5, temperature=4),
        TopK(0.5, temperature="learned"),
        TopK(0.5),
        TopP(0.7, temperature=0.5),
    )
    method = PerHead(tuple(Method(rule=rule) for rule in rules))
    raw = torch.tensor([9.0, 0.03, 9.0, 9.0])
    given = call(method, {"rule.temperature": raw})
    learned = 16 ** torch.tanh(25 / torch.tensor(16.0).log() * raw[1])
    for head, temperature in enumerate((4, float(learned), 1, 0.5)):
        alone = given.of([head], Method(rule=replace(rules[head], temperature=temperature)))
        for backend in ("auto", "reference"):
            output = dispatch.attention(given, backend)[0][:, head : head + 1]
            torch.testing.assert_close(output, dispatch.attention(alone, backend)[0], rtol=1e-4, atol=1e-5)


def test_untrained_it_is_one_and_training_moves_that_of_every_head() -> None:
    learned, plain = (crisp.sparsify(noisy(distilbert()), TopK(0.5, temperature=t)) for t in ("learned", 1))
    assert logits(learned).equal(logits(plain))
    optimizer = torch.optim.Adam(learned.parameters(), lr=2e-5)
    for _ in range(5):
        optimizer.zero_grad()
        learned(**BATCH, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    found = [each for name, each in learned.named_parameters() if name.endswith("rule.temperature")]
    moved = torch.cat([(25 * each).exp() - 1 for each in found])
    assert len(moved) == 8
    assert (moved.abs() > 1e-3).float().mean() > 0.8  # where a logarithm of its own would have moved by 1e-4


def test_only_a_temperature_of_one_drops_nothing() -> None:
    assert Method().drops_nothing()
    assert not any(Method(rule=Dense(temperature=t)).drops_nothing() for t in (0.5, 4, "learned"))
    sharp, dense = (crisp.sparsify(noisy(distilbert()), Dense(temperature=t)) for t in (4, 1))
    assert not torch.allclose(logits(sharp), logits(dense), atol=1e-3)


def test_what_is_saved_shows_it_only_where_it_is_not_one() -> None:
    assert Method(rule=TopK(0.5, temperature=1)).to_dict() == {
        "layout": {"name": "full"},
        "rule": {"name": "topk", "sparsity": 0.5, "min_keep": 1, "keep": None},
    }
    method = Method(Window(9), TopK(0.5, temperature=4))
    assert method.spec == "window:width=9+topk:sparsity=0.5:temperature=4"
    assert parse(method.spec) == Method.from_dict(method.to_dict()) == method
    assert Method(Window(9), Dense(temperature=4)).spec == "window:width=9+dense:temperature=4"
    assert repr(TopK(0.5, temperature=4)) == "TopK(sparsity=0.5, min_keep=1, keep=None, temperature=4)"
    assert method.with_sparsity(0.7) == Method(Window(9), TopK(0.7, temperature=4))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, r"temperature must be in \(0, inf\), got 0"),
        (-1.0, ValueError, r"temperature must be in \(0, inf\), got -1\.0"),
        (float("nan"), ValueError, r"temperature must be in \(0, inf\), got nan"),
        (True, TypeError, r"temperature must be a number in \(0, inf\), got True"),
        ("learnt", ValueError, r"temperature must be a positive number or \"learned\", got 'learnt'"),
    ],
)
@pytest.mark.parametrize("rule", [Dense, TopK, RandomK])
def test_a_temperature_that_is_none_is_refused(rule: type[Rule], value, error, message) -> None:
    with pytest.raises(error, match=message):
        rule(temperature=value)


def test_a_learned_one_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature='learned' needs a parameter, .* crisp\.sparsify"):
        crisp.attention(*self_attention(), Dense(temperature="learned"))
