"""What the options of a run say about sparsity, and a run with budgets."""

import json

import pytest
from transformers import AutoModelForSequenceClassification

import crisp_attention as crisp
from crisp_attention import Budgets, Dense, Method, PerHead, Schedule, TopK, Window
from crisp_attention.errors import OptionError
from crisp_attention.models.settings import settings_of
from crisp_attention.runs.finetune import finetune
from crisp_attention.runs.options import FinetuneOptions
from crisp_attention.runs.sparsity import described, make_sparse, method_of, recorded, schedule_of
from tests.runs import small

NAME = "bert.encoder.layer.{}.attention.self"
HEADS = PerHead((Method(rule=TopK(0.75)), Method(Window(3))))
BUDGETS = Budgets({NAME.format(0): Method(rule=TopK(0.5)), NAME.format(2): HEADS})


@pytest.fixture
def options(tmp_path):
    """The options of a run; `budgets=True` stands for a file of budgets."""

    def build(**changes) -> FinetuneOptions:
        if changes.pop("budgets", False):
            changes["budgets"] = tmp_path / "budgets.json"
            BUDGETS.save(changes["budgets"])
        return FinetuneOptions(model="some/model", dataset="some/set", output=tmp_path / "run", **changes)

    return build


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, Method(rule=TopK(0.8))),
        ({"sparsity": 0.5}, Method(rule=TopK(0.5))),
        ({"method": "topk:keep=16"}, Method(rule=TopK(keep=16))),
        ({"method": "window:width=9+topk", "sparsity": 0.5}, Method(Window(9), TopK(0.5))),
        ({"method": "dense"}, Method()),
        ({"budgets": True}, BUDGETS),
    ],
)
def test_options_name_a_method_or_budgets(options, changes, method) -> None:
    assert method_of(options(**changes)) == method


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budgets": True, "method": "topk"},
            "--budgets says it for every layer and head; leave --method out",
        ),
        ({"budgets": True, "sparsity": 0.0}, "leave --sparsity out"),
        ({"budgets": True, "layers": ("1",)}, "leave --layers out"),
        ({"budgets": True, "attention": "all"}, "leave --attention out"),
        (
            {"method": "topk:sparsity=0.5", "sparsity": 0.5},
            "--method topk:sparsity=0.5: .* says sparsity itself",
        ),
        ({"method": "topk:keep=4", "sparsity": 0.5}, "--method topk:keep=4: keep=4 .* excludes sparsity"),
        ({"method": "block_topk+topk", "sparsity": 0.5}, "both parts of .* have a sparsity"),
        ({"method": "dense", "attention": "all"}, "--attention has no meaning with --method dense"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, changes, message) -> None:
    with pytest.raises(OptionError, match=message):
        method_of(options(**changes))


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_file_that_holds_no_budgets_is_named(tmp_path, content) -> None:
    file = tmp_path / "other.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(OptionError, match=r"--budgets: .*other\.json"):
        method_of(FinetuneOptions(model="some/model", dataset="some/set", output=tmp_path, budgets=file))


def test_a_schedule_rises_to_the_sparsity_of_the_method(options) -> None:
    rising = options(schedule="cubic", ramp=(0.1, 0.6), sparsity=0.7)
    assert schedule_of(rising, method_of(rising)) == Schedule(0.7, shape="cubic", begin=0.1, end=0.6)
    assert schedule_of(options(), Method(rule=TopK(0.7))) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budgets": True, "schedule": "linear"},
            "--schedule linear sets one sparsity .*; --budgets has many",
        ),
        ({"method": "topk:keep=4", "schedule": "linear"}, "needs a method with one sparsity, got topk"),
        ({"method": "entmax", "schedule": "cubic"}, "needs a method with one sparsity, got entmax"),
        ({"ramp": (0.0, 0.5)}, "--ramp needs a --schedule that rises"),
    ],
)
def test_a_schedule_that_cannot_rise_is_refused(options, changes, message) -> None:
    given = options(**changes)
    with pytest.raises(OptionError, match=message):
        schedule_of(given, method_of(given))


def test_budgets_are_recorded_and_described(options, bert) -> None:
    given = options(budgets=True, phase="train")
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    assert described(model, BUDGETS, None, "always") == "attention: dense, the model's own"
    make_sparse(model, BUDGETS, given)
    assert [settings.method for _, settings in settings_of(model)] == [Method(rule=TopK(0.5)), None, HEADS]
    said = described(model, BUDGETS, None, "train")
    assert said == "attention: budgets by layer and head, in training only, in 2 of 3 layers"
    assert recorded(BUDGETS)["layers"][NAME.format(2)] == HEADS.to_dict()
    assert recorded(Method()) == Method().to_dict()


def test_a_dense_run_keeps_the_models_own_attention(options, bert) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    make_sparse(model, Method(rule=Dense()), options(method="dense"))
    assert not settings_of(model)


def test_budgets_of_another_model_are_named(options, bert) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    other = Budgets({"encoder.layers.9": Method(rule=TopK(0.5))})
    with pytest.raises(OptionError, match=r"^--budgets: .*'encoder\.layers\.9', which matches 0 layers"):
        make_sparse(model, other, options(budgets=True))


def test_a_run_with_budgets_learns_and_is_saved_with_them(bert, reviews, tmp_path) -> None:
    BUDGETS.save(tmp_path / "budgets.json")
    given = small.options(
        bert, reviews, tmp_path / "run", sparsity=None, budgets=tmp_path / "budgets.json", epochs=1
    )
    run = finetune(given)
    folder = run.directory.path
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == recorded(BUDGETS)
    assert run.metrics["achieved_sparsity"] > 0.2
    loaded = crisp.load(folder / "model")
    assert [settings.method for _, settings in settings_of(loaded)] == [Method(rule=TopK(0.5)), None, HEADS]
