"""What a method learns lives on the attention modules of its model, as parameters like any other."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import crisp_attention as crisp
from crisp_attention import Dense, Entmax, Method, PerHead, TopK
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.parameters import parameters_of
from tests.contract.families import FAMILIES
from tests.models.tiny import BATCH, bart, distilbert, layers_of, logits, noisy, settings_in

LEARNED = Entmax("learned")
LABELS = torch.tensor([0, 1])


def values(model) -> dict[str, Tensor]:
    """Copies of all that a model has learned, by parameter name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if "crisp_learned" in name}


def taught(model):
    """Other values in every layer and head."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "crisp_learned" in name:
                parameter.copy_(torch.randn(parameter.shape) / 100)
    return model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def trained(model, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**BATCH, labels=LABELS).loss.backward()
        optimizer.step()


def test_every_chosen_layer_has_one_for_each_of_its_heads() -> None:
    model = crisp.sparsify(distilbert(), LEARNED, layers=["1-2"])
    assert {name: tuple(value.shape) for name, value in values(model).items()} == {
        f"distilbert.transformer.layer.{n}.attention.crisp_learned.rule.alpha": (2,) for n in (1, 2)
    }
    assert all(value.abs().max() == 0 for value in values(model).values())
    assert values(crisp.sparsify(distilbert(), Entmax(1.5))) == {}


def test_cross_attention_learns_too() -> None:
    model = crisp.sparsify(bart(), LEARNED, attention="cross")
    assert len(values(model)) == 2
    assert all("encoder_attn.crisp_learned.rule.alpha" in name for name in values(model))


def test_untrained_it_is_entmax_of_one_and_a_half() -> None:
    learned, fixed = (logits(crisp.sparsify(distilbert(), Entmax(alpha))) for alpha in ("learned", 1.5))
    torch.testing.assert_close(learned, fixed, rtol=1e-5, atol=1e-6)


def test_at_the_rates_of_fine_tuning_a_few_steps_move_it_and_each_head_its_own_way() -> None:
    model = crisp.sparsify(distilbert(), LEARNED)
    trained(model, 20)
    moved = torch.stack([0.98 * torch.sigmoid(100 * value) - 0.49 for value in values(model).values()])
    assert (moved.abs() > 1e-3).float().mean() > 0.8  # of α, whose interval is 0.98 wide
    assert len(moved.flatten().unique()) == moved.numel()


def test_the_model_computes_with_the_values_of_each_layer_and_head() -> None:
    model = taught(crisp.sparsify(noisy(distilbert()), LEARNED))
    fixed = {}
    for layer, _ in settings_in(model):
        alphas = 1.01 + 0.98 * torch.sigmoid(100 * parameters_of(layer.module)["rule.alpha"].double())
        fixed[layer.index] = PerHead(tuple(Method(rule=Entmax(alpha)) for alpha in alphas.tolist()))
    other = crisp.sparsify(noisy(distilbert()), layers=fixed)
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(model), logits(crisp.sparsify(other, Entmax(1.5))), atol=1e-3)


def test_only_the_heads_that_use_theirs_learn() -> None:
    model = crisp.sparsify(distilbert(), heads={0: LEARNED, 1: TopK(0.5)})
    model(**BATCH, labels=LABELS).loss.backward()
    for layer, _ in settings_in(model):
        slope = parameters_of(layer.module)["rule.alpha"].grad
        assert slope[0] != 0
        assert slope[1] == 0


def test_densify_takes_them_away() -> None:
    model, names = distilbert(), list(distilbert().state_dict())
    crisp.densify(taught(crisp.sparsify(model, LEARNED)))
    assert list(model.state_dict()) == names
    assert logits(model).equal(logits(distilbert()))
    assert all((value == 0).all() for value in values(crisp.sparsify(model, LEARNED)).values())


@pytest.mark.parametrize("again", [LEARNED, Method(crisp.Window(5), LEARNED)], ids=["same", "in a window"])
def test_doing_it_again_keeps_what_was_learned(again) -> None:
    model = taught(crisp.sparsify(distilbert(), LEARNED))
    before, parameters = values(model), [p for n, p in model.named_parameters() if "crisp_learned" in n]
    crisp.sparsify(model, again)
    assert same(values(model), before)
    now = [p for n, p in model.named_parameters() if "crisp_learned" in n]
    assert all(one is other for one, other in zip(parameters, now, strict=True))  # an optimizer holds them


def test_another_method_takes_them_away_where_it_is() -> None:
    model = taught(crisp.sparsify(distilbert(), LEARNED))
    before = values(model)
    crisp.sparsify(model, layers={"*": LEARNED, "2": TopK(0.5)})
    kept = {name: value for name, value in before.items() if ".2." not in name}
    assert same(values(model), kept)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_its_own_with_the_same_values(duplicate) -> None:
    model = taught(crisp.sparsify(distilbert(), LEARNED))
    before, twin = values(model), duplicate(model)
    assert same(values(twin), before)
    assert logits(twin).equal(logits(model))
    trained(twin, 1)
    assert not same(values(twin), before)
    assert same(values(model), before)


@pytest.mark.parametrize("method", [Dense(), TopK(0.5), LEARNED, Entmax(2)], ids=str)
def test_another_method_for_a_while_leaves_the_very_parameters(method) -> None:
    model = taught(crisp.sparsify(distilbert(), LEARNED, layers=[0, 2], phase="eval"))
    named = dict(model.named_parameters())
    before, said, config = values(model), logits(model), model.config.to_dict()
    with borrowed(model, method=method):
        assert not logits(model).equal(said)
    assert same(values(model), before)
    assert all(parameter is named[name] for name, parameter in model.named_parameters())
    assert logits(model).equal(said)
    assert model.config.to_dict() == config


def test_after_another_method_for_a_while_a_dense_model_is_dense() -> None:
    model = distilbert()
    with borrowed(model, method=LEARNED):
        assert len(values(model)) == 4
    assert not settings_in(model)
    with pytest.raises(KeyError), borrowed(model, method=LEARNED):
        raise KeyError
    assert not settings_in(model)
    assert list(model.state_dict()) == list(distilbert().state_dict())


def test_a_method_that_does_not_fit_for_a_while_leaves_the_model_as_it_was() -> None:
    model = taught(crisp.sparsify(bart(), LEARNED))
    before = values(model)
    with pytest.raises(TypeError, match="method"), borrowed(model, method="topk"):
        pytest.fail("the block must not run")
    assert same(values(model), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_and_saves_it(dtype, tmp_path) -> None:
    model = taught(crisp.sparsify(noisy(distilbert()), LEARNED)).to(dtype)
    model(**BATCH, labels=LABELS).loss.backward()
    slopes = [p.grad for name, p in model.named_parameters() if "crisp_learned" in name]
    assert all(slope.isfinite().all() and slope.abs().max() > 0 for slope in slopes)
    model.save_pretrained(tmp_path)
    loaded = crisp.load(tmp_path, dtype=dtype)
    assert all(value.equal(values(model)[name]) for name, value in values(loaded).items())
    assert logits(loaded).equal(logits(model))


def test_a_module_that_does_not_say_how_many_heads_it_has_cannot_learn_but_can_be_sparse(monkeypatch) -> None:
    model = distilbert()
    for layer in layers_of(model):
        monkeypatch.delattr(layer.module, "n_heads")
    monkeypatch.setattr(type(model.config), "attribute_map", {})
    crisp.sparsify(model, TopK(0.5))
    before = model.config.to_dict()
    for refused in ({"method": LEARNED}, {"heads": {"*": TopK(0.5)}}):
        with pytest.raises(ValueError, match="does not say how many heads it has"):
            crisp.sparsify(model, **refused)
    assert model.config.to_dict() == before


def test_layers_that_share_a_module_share_what_they_learn() -> None:
    albert = next(family for family in FAMILIES if family.name == "albert").build()
    assert len(values(crisp.sparsify(albert, LEARNED))) == 1
