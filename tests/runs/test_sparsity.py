"""A model is made sparse as its run asks, with budgets too."""

import json

import pytest
from transformers import AutoModelForSequenceClassification

import crisp_attention as crisp
from crisp_attention import Budgets, Dense, Method, PerHead, TopK, Window
from crisp_attention.errors import OptionError
from crisp_attention.runs.prepare import make_sparse
from crisp_attention.runs.spec import Data, RunSpec
from tests.models.tiny import settings_in
from tests.runs import small

NAME = "bert.encoder.layer.{}.attention.self"
HEADS = PerHead((Method(rule=TopK(0.75)), Method(Window(3))))
BUDGETS = Budgets({NAME.format(0): Method(rule=TopK(0.5)), NAME.format(2): HEADS})


def spec(**changes) -> RunSpec:
    return RunSpec(model="some/model", data=Data(source="some/set"), **changes)


@pytest.fixture
def model(bert):
    return AutoModelForSequenceClassification.from_pretrained(bert)


def test_budgets_are_applied_and_described(model):
    given = spec(method=BUDGETS, phase="train")
    described = make_sparse(model, given)
    assert [settings.method for _, settings in settings_in(model)] == [Method(rule=TopK(0.5)), None, HEADS]
    assert described == ("attention: budgets by layer and head, in training only, in 2 of 3 layers")


def test_a_dense_run_keeps_the_models_own_attention(model):
    assert make_sparse(model, spec(method=Dense())) == "attention: dense, the model's own"
    assert not settings_in(model)


@pytest.mark.parametrize(
    ("changes", "option", "message"),
    [
        (
            {"method": Budgets({"encoder.layers.9": TopK(0.5)})},
            "budgets",
            r"'encoder\.layers\.9', which matches 0 layers",
        ),
        ({"layers": [9]}, "layers", "no layer matched '9'"),
    ],
)
def test_what_does_not_fit_the_model_is_named(model, changes, option, message):
    with pytest.raises(OptionError, match=message) as refused:
        make_sparse(model, spec(**changes))
    assert refused.value.option == option


def test_a_run_with_budgets_learns_and_is_saved_with_them(bert, reviews, tmp_path):
    BUDGETS.save(tmp_path / "budgets.json")
    run = small.tuned(
        small.options(
            bert, reviews, tmp_path / "run", sparsity=None, budgets=tmp_path / "budgets.json", epochs=1
        )
    )
    config = json.loads((run.directory / "config.json").read_text())
    assert RunSpec.from_dict(config["options"]).method == BUDGETS
    assert run.metrics["achieved_sparsity"] > 0.2
    loaded = crisp.load(run.directory)
    assert [settings.method for _, settings in settings_in(loaded)] == [Method(rule=TopK(0.5)), None, HEADS]
