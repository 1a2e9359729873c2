"""The paper's experiment: what is run, and what is said with it."""

from pathlib import Path

import pytest

from crisp_attention.cli import reproduce
from crisp_attention.cli.options import ReproduceOptions
from crisp_attention.cli.sweep import plan_of


@pytest.fixture
def asked(monkeypatch):
    """The study that the preset asks for, without running it."""
    calls = []
    monkeypatch.setattr(
        reproduce,
        "run_sweep",
        lambda options, console, command, published: calls.append((options, published)),
    )

    def ask(**changes):
        reproduce.run_reproduce(ReproduceOptions(output=Path("unused"), **changes), None)
        return calls[-1]

    return ask


def test_it_is_dense_three_sparsities_and_the_control(asked):
    options, _ = asked()
    assert (options.model, options.dataset, options.seeds) == (
        "distilbert-base-uncased",
        "stanfordnlp/sst2",
        5,
    )
    assert [each.label for each in plan_of(options)[0].configurations] == [
        "dense",
        "topk 40 %",
        "topk 60 %",
        "topk 80 %",
        "random 80 %",
    ]
    recipes = {(each.recipe.learning_rate, each.recipe.epochs) for each in plan_of(options)[0].configurations}
    assert recipes == {(2e-5, 3.0)}


def test_local_ones_swap_in(asked):
    options, _ = asked(
        model="m",
        dataset="d",
        revision="v2",
        seeds=2,
        train_examples=100,
        workers=3,
        training=("bf16=true",),
    )
    assert options.revision == "v2"
    assert (options.model, options.dataset, options.seeds, options.workers) == ("m", "d", 2, 3)
    assert (options.train_examples, options.training) == (100, ("bf16=true",))


def test_the_published_numbers_belong_to_configurations_that_are_run(asked):
    options, published = asked()
    labels = [each.label for each in plan_of(options)[0].configurations]
    assert {row["label"] for row in published["rows"]} <= set(labels)
    gain = published["rows"][1]["accuracy"] - published["rows"][0]["accuracy"]
    assert gain == pytest.approx(0.0097)
    for right in range(873):  # what the caveat says
        assert f"{100 * right / 872:.2f}" not in ("91.59", "90.62")
