"""Budgets on models: those they are for, with a head or without."""

import pytest
from transformers import AutoModel

import crisp_attention as crisp
from crisp_attention import Budgets, Method, PerHead, SparseCheckpointLoadedDense, TopK, Window
from tests.models.tiny import bart, distilbert, logits, settings_in

HEADS = PerHead((Method(rule=TopK(0.7)), Method(Window(3))))
METHODS = {"transformer.layer.0.attention": Method(rule=TopK(0.5)), "transformer.layer.3.attention": HEADS}
BUDGETS = Budgets(METHODS)


@pytest.fixture
def file(tmp_path):
    BUDGETS.save(tmp_path / "budgets.json")
    return tmp_path / "budgets.json"


def methods(model) -> list:
    return [settings.method for _, settings in settings_in(model)]


def test_budgets_from_a_file_go_to_the_layers_they_name(file) -> None:
    model = crisp.sparsify(distilbert().distilbert, crisp.budgets(file))
    assert methods(model) == [Method(rule=TopK(0.5)), None, None, HEADS]


def test_a_head_of_the_model_more_or_less_does_not_matter(file, tmp_path) -> None:
    whole = crisp.sparsify(distilbert(), crisp.budgets(file))
    assert methods(whole) == [Method(rule=TopK(0.5)), None, None, HEADS]
    longer = Budgets({f"distilbert.{name}": method for name, method in METHODS.items()})
    assert methods(crisp.sparsify(distilbert().distilbert, longer)) == methods(whole)
    whole.save_pretrained(tmp_path / "model")
    with pytest.warns(SparseCheckpointLoadedDense):
        base = AutoModel.from_pretrained(tmp_path / "model")
    assert methods(crisp.restore(base)) == methods(whole)


def test_budgets_are_the_same_as_methods_by_layer_and_head() -> None:
    by_hand = crisp.sparsify(distilbert(), layers={0: TopK(0.5), 3: {0: TopK(0.7), 1: Window(3)}})
    assert logits(crisp.sparsify(distilbert(), BUDGETS)).equal(logits(by_hand))


@pytest.mark.parametrize(
    ("budgets", "more", "error", "message"),
    [
        (BUDGETS, {"layers": [0]}, TypeError, "budgets already name their layers"),
        (BUDGETS, {"attention": "all"}, TypeError, "budgets already name their layers"),
        (BUDGETS, {"heads": {0: TopK(0.5)}}, TypeError, "give either heads="),
        (
            Budgets({"transformer.layer.7.attention": HEADS}),
            {},
            ValueError,
            r"the layer 'transformer\.layer\.7\.attention', which matches 0 layers of this model",
        ),
        (
            Budgets({"transformer.layer.0.attention": PerHead((*HEADS.methods, Method()))}),
            {},
            ValueError,
            r"layer 0 .* has 2 heads, the method is for 3",
        ),
    ],
)
def test_budgets_of_another_model_are_refused(budgets, more, error, message) -> None:
    model = distilbert()
    with pytest.raises(error, match=message):
        crisp.sparsify(model, budgets, **more)
    assert not settings_in(model)


def test_budgets_reach_cross_attention_by_name() -> None:
    name = "model.decoder.layers.0.encoder_attn"
    model = crisp.sparsify(bart(), Budgets({name: Method(rule=TopK(0.5))}))
    assert [layer.name for layer, settings in settings_in(model) if settings.method] == [name]
    with pytest.raises(ValueError, match="cross-attention does not have"):
        crisp.sparsify(bart(), Budgets({name: Method(Window(3))}))
