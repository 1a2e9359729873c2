"""A run as values: what is refused when it is made, and what is written down and read again."""

import json
import pickle
import re
from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict

from crisp_attention import Budgets, Dense, Entmax, Method, PerHead, Schedule, TopK, Window
from crisp_attention.cli.options import FinetuneOptions
from crisp_attention.errors import OptionError
from crisp_attention.files import plain
from crisp_attention.runs.flat import spec_of
from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.runs.spec import Data, Recipe, RunSpec

HEADS = PerHead((Method(rule=TopK(0.75)), Method(Window(3))))
BUDGETS = Budgets({"encoder.0": Method(rule=TopK(0.5)), "encoder.2": HEADS}, expected={"sparsity": 0.6})


def spec(**changes) -> RunSpec:
    return RunSpec(**{"model": "some/model", "data": Data(source="some/set"), **changes})


SPECS = {
    "defaults": spec(),
    "dense": spec(method=Dense()),
    "a rule and a layout": spec(
        method=Method(Window(9), TopK(0.5)), layers=[1, "2-3"], phase="train", seed=7
    ),
    "heads": spec(method=HEADS, attention="all"),
    "budgets": spec(method=BUDGETS, phase="eval", metric="mcc"),
    "a schedule": spec(method=TopK(0.7), schedule=Schedule(0.7, shape="linear", begin=0.1, end=0.6)),
    "all of recipe and data": spec(
        data=Data(
            source="x",
            revision="v1",
            text_columns=["a", "b"],
            label_column="y",
            image_column=None,
            train_examples=9,
        ),
        recipe=Recipe(
            epochs=1, batch_size=8, learning_rate=0.1, max_length=64, training={"bf16": True, "max_steps": 3}
        ),
    ),
}


@pytest.mark.parametrize("given", SPECS.values(), ids=SPECS)
def test_what_is_written_down_is_read_back(given):
    again = RunSpec.from_dict(json.loads(json.dumps(given.to_dict())))
    assert again == given
    assert again.differences(given) == ""
    assert pickle.loads(pickle.dumps(given)) == given


def options(**changes) -> dict:
    """Flat options as the command line has them, and as config.json held them before it held a RunSpec."""
    return plain(FinetuneOptions(model="some/model", dataset="some/set", output="unused", **changes))


@pytest.mark.parametrize(
    ("flat", "same"),
    [
        ({}, {}),
        ({"sparsity": 0.5}, {"method": TopK(0.5)}),
        ({"method": "window:width=9+topk", "sparsity": 0.5}, {"method": Method(Window(9), TopK(0.5))}),
        ({"method": "dense"}, {"method": Method()}),
        (
            {"schedule": "cubic", "ramp": (0.1, 0.6), "sparsity": 0.7},
            {"method": TopK(0.7), "schedule": Schedule(0.7, shape="cubic", begin=0.1, end=0.6)},
        ),
        (
            {"schedule": "linear"},
            {"schedule": Schedule(0.8, shape="linear", begin=0, end=0.5)},
        ),
        (
            {
                "training": ("bf16=true", "optim_args=a=1"),
                "epochs": 1.0,
                "train_examples": 5,
                "layers": ("1", "2"),
            },
            {
                "recipe": Recipe(epochs=1, training={"bf16": True, "optim_args": "a=1"}),
                "data": Data(source="some/set", train_examples=5),
                "layers": (1, 2),
            },
        ),
    ],
)
def test_flat_options_are_the_same_run(flat, same):
    assert spec_of(options(**flat)) == spec(**same)


def test_budgets_are_read_from_their_file_or_from_what_was_written_down(tmp_path):
    BUDGETS.save(tmp_path / "budgets.json")
    flat = options(budgets=tmp_path / "budgets.json")
    assert spec_of(flat) == spec(method=BUDGETS)
    (tmp_path / "budgets.json").unlink()
    kept = {"layers": {name: each.to_dict() for name, each in BUDGETS.methods.items()}}
    assert spec_of(flat | {"method": kept}) == spec(method=BUDGETS)


REFUSED = [
    (lambda: Recipe(epochs=0), "epochs", "epochs must be positive and finite, got 0"),
    (lambda: Recipe(learning_rate=float("nan")), "learning_rate", "positive and finite, got nan"),
    (lambda: Recipe(batch_size=0), "batch_size", "batch_size must be a whole number of at least 1, got 0"),
    (lambda: Recipe(batch_size=1.5), "batch_size", "a whole number of at least 1, got 1.5"),
    (lambda: Recipe(epochs="two"), "epochs", "epochs must be positive and finite, got 'two'"),
    (lambda: Recipe(training="bf16=true"), "training", "training must be a mapping, .* got 'bf16=true'"),
    (
        lambda: Recipe(report_to="paper"),
        "report_to",
        "must be one of none, tensorboard, mlflow, wandb; got 'paper'",
    ),
    (lambda: Data(source="x", train_examples=0), "train_examples", "at least 1, got 0"),
    (
        lambda: Data(source="x", text_columns="text"),
        "text_columns",
        "a list or another sequence, got 'text'",
    ),
    (lambda: spec(seed=-1), "seed", "seed must be a whole number in 0 to 4294967295, got -1"),
    (lambda: spec(seed="a"), "seed", "seed must be a whole number in 0 to 4294967295, got 'a'"),
    (lambda: spec(phase="never"), "phase", "phase must be one of always, train, eval; got 'never'"),
    (lambda: spec(method=Dense(), layers=[1]), "layers", "layers has no meaning with dense attention"),
    (lambda: spec(method=Dense(), phase="train"), "phase", "phase has no meaning with dense"),
    (lambda: spec(method=BUDGETS, layers=[1]), "layers", "layers cannot be combined with budgets"),
    (lambda: spec(method=BUDGETS, schedule=Schedule(0.5)), "schedule", "sets one sparsity everywhere"),
    (lambda: spec(method=Entmax(), schedule=Schedule(0.5)), "schedule", "with one sparsity, got entmax"),
    (
        lambda: spec(method=TopK(0.8), schedule=Schedule(0.5)),
        "schedule",
        "end at the method's sparsity, 0.8; .* 0.5",
    ),
]
REFUSED_FLAT = [
    ({"method": "magic"}, "method", "unknown method 'magic'"),
    ({"sparsity": 1.2}, "method", "method topk: sparsity must be in"),
    ({"method": "topk:sparsity=0.5", "sparsity": 0.5}, "method", "already sets sparsity"),
    ({"budgets": "no.json", "method": "topk"}, "method", "method cannot be combined with budgets"),
    ({"budgets": "no.json", "sparsity": 0.0}, "sparsity", "sparsity cannot be combined with budgets"),
    ({"budgets": "no.json"}, "budgets", r"cannot read budgets from no\.json"),
    ({"ramp": (0.0, 0.5)}, "ramp", "ramp needs a schedule that rises"),
    ({"schedule": "cubic", "ramp": (0.5, 0.2)}, "ramp", "begin and end must satisfy"),
    ({"schedule": "linear", "method": "topk:keep=4"}, "schedule", "with one sparsity, got topk"),
    ({"training": ("bf16",)}, "training", "training expects KEY=VALUE, got 'bf16'"),
]
REFUSED += [
    (lambda flat=flat: spec_of(options(**flat)), name, message) for flat, name, message in REFUSED_FLAT
]


@pytest.mark.parametrize(("make", "option", "message"), REFUSED, ids=[each[2] for each in REFUSED])
def test_what_cannot_be_is_refused_by_name(make, option, message):
    with pytest.raises(OptionError, match=message) as refused:
        make()
    assert refused.value.option == option
    assert pickle.loads(pickle.dumps(refused.value)).option == option


def test_a_method_is_a_value():
    with pytest.raises(TypeError, match=r"expected a method such as crisp\.TopK"):
        spec(method="topk")


RISING = Schedule(0.8, shape="linear", end=0.5)
OTHER_BUDGETS = Budgets({name: TopK(0.9) for name in BUDGETS.methods})
PRUNED = Pruning(sparsity=0.9)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            {},
            {"schedule": RISING},
            "schedule was constant, is linear; ramp was not given, is 0.0 0.5",
        ),
        ({"schedule": RISING}, {"schedule": replace(RISING, end=0.7)}, "ramp was 0.0 0.5, is 0.0 0.7"),
        ({"method": BUDGETS}, {"method": OTHER_BUDGETS}, r"method was (budgets of .*), is other \1"),
        (
            {},
            {"treatment": PRUNED},
            "epochs was 3.0, is 3.0 in all; treatment was not given, is prune:sparsity=0.9",
        ),
        ({"treatment": PRUNED}, {"treatment": replace(PRUNED, sparsity=0.8)}, "target was 0.9, is 0.8"),
        (
            {"treatment": PRUNED},
            {"treatment": Pruning(feed_forward=0.9, score_kept=True, skip=["*.key"])},
            "target was 0.9, is not given; feed_forward was not given, is 0.9; score_kept was not given, is given; "
            r"skip was not given, is \*\.key",
        ),
        (
            {"treatment": replace(PRUNED, steps=3)},
            {"treatment": PRUNED, "recipe": Recipe(epochs=5)},
            "epochs was 3.0 in all, is 5.0 in all; steps was 3, is 5",
        ),
        (
            {"data": Data(source="x", classes=["3", "5"])},
            {"data": Data(source="x", draw_classes=2)},
            "classes was 3 5, is not given; draw_classes was not given, is 2",
        ),
        ({"attention": "all", "treatment": PRUNED}, {"treatment": PRUNED}, "attention was all, is self"),
    ],
)
def test_of_values_inside_others_those_alone_are_named_that_differ(before, now, said):
    assert re.fullmatch(said, spec(**now).differences(spec(**before)))


def test_differences_are_named_with_both_values_and_where_a_run_is_logged_is_none():
    before = spec(layers=["1"], recipe=Recipe(training={"bf16": True}))
    now = spec(method=TopK(0.5), recipe=Recipe(epochs=1, report_to="wandb"), data=Data(source="other"))
    assert now.differences(before) == (
        "data was some/set, is other; method was topk:sparsity=0.8, is topk:sparsity=0.5; layers was 1, is not given; "
        "epochs was 3.0, is 1; training was bf16=true, is not given"
    )


def test_data_in_memory_are_written_down_only_with_a_place():
    held = DatasetDict({"train": Dataset.from_dict({"text": ["a"], "label": [0]})})
    with pytest.raises(TypeError, match="place of its data"):
        spec(data=Data(source=held)).to_dict()
