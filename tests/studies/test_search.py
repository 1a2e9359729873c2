"""Recipes chosen on validation: what Optuna chooses from, and what is confirmed afterwards."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import optuna
import pandas as pd
import pytest

from crisp_attention.cli.options import SweepOptions
from crisp_attention.cli.sweep import plan_of
from crisp_attention.errors import OptionError
from crisp_attention.methods.rules import TopK
from crisp_attention.runs.spec import Data, RunSpec
from crisp_attention.runs.task.metrics import ACCURACY
from crisp_attention.schedule import Schedule
from crisp_attention.studies.sweep.campaign import Campaign
from crisp_attention.studies.sweep.child import Asked
from crisp_attention.studies.sweep.search import Search

LAYERS = 6
OPTIONS = SweepOptions(
    model="m",
    dataset="d",
    output=Path("unused"),
    method=("topk,entmax:alpha=1.5", "random"),
    search=True,
    trials=9,
    learning_rate=1e-4,
)


def searching(**changes) -> Search:
    """The search of the options with these changes."""
    found = plan_of(replace(OPTIONS, **changes))[1]
    assert found is not None
    return found


def drawn(search: Search, kind: str, count: int = 40):
    """Choices of a kind, in a study of their own."""
    study = optuna.create_study(direction="maximize")
    return [search.suggest(kind, study.ask(), LAYERS) for _ in range(count)]


def test_a_third_of_the_trials_is_dense():
    search = searching()
    assert [each.name for each in search.planned("dense")] == [f"dense-trial-00{n}" for n in range(3)]
    assert len(search.planned("sparse")) == 6


def test_dense_chooses_its_learning_rate():
    dense = drawn(searching(), "dense")
    assert {(each.spec, each.treatment.schedule, each.treatment.layers) for each in dense} == {
        ("dense", None, ())
    }
    assert len({each.recipe.learning_rate for each in dense}) == 40
    assert all(2.5e-5 <= each.recipe.learning_rate <= 4e-4 for each in dense)


def test_sparse_chooses_everything():
    sparse = drawn(searching(), "sparse")
    assert all(2.5e-5 <= each.recipe.learning_rate <= 4e-4 for each in sparse)
    assert {each.treatment.name for each in sparse} == {
        "topk",
        "entmax",
    }  # random keys are the control, not a choice
    topk = [each for each in sparse if each.treatment.name == "topk"]
    assert all(
        0.3 <= each.treatment.sparsity <= 0.95 and len(str(each.treatment.sparsity)) <= 4 for each in topk
    )
    assert {each.treatment.layers for each in sparse} == {(), ("0-2",), ("3-5",)}
    assert {shape(each) for each in topk} == {"constant", "linear", "cubic"}
    assert {shape(each) for each in sparse if each.treatment.name == "entmax"} == {"constant"}


def test_what_one_kind_learns_the_other_does_not():
    """The best rate of dense is four times, that of sparse a quarter of the rate given; both are found."""
    search = searching()
    for kind, best in (("dense", 4e-4), ("sparse", 2.5e-5)):
        study = optuna.create_study(direction="maximize")
        for _ in range(40):
            trial = study.ask()
            study.tell(trial, -abs(np.log(search.suggest(kind, trial, LAYERS).recipe.learning_rate / best)))
        late = [each.params["learning_rate"] for each in study.trials[20:]]
        assert np.median(np.abs(np.log(np.array(late) / best))) < np.log(2)


def test_what_the_user_says_is_not_searched():
    said = searching(layers=("1-2",), schedule="cosine", sparsity=("0.6", "0.8"))
    sparse = [each for each in drawn(said, "sparse") if each.treatment.name == "topk"]
    assert {each.treatment.layers for each in sparse} == {("1-2",)}
    assert {shape(each) for each in sparse} == {"cosine"}
    assert {each.treatment.sparsity for each in sparse} == {0.6, 0.65, 0.7, 0.75, 0.8}


def test_one_sparsity_is_that_one():
    for said in (searching(sparsity=("0.7",)), searching(method=("topk:sparsity=0.7",))):
        found = [each for each in drawn(said, "sparse") if each.treatment.name == "topk"]
        assert {each.treatment.sparsity for each in found} == {0.7}
        assert {shape(each) for each in found} == {"constant", "linear", "cubic"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ("random",)}, "random keys are only the control"),
        ({"trials": 2}, "trials must be at least 6, got 2"),
        ({"recipe": ("dense:epochs=9",)}, "recipe cannot be combined with search=True"),
    ],
)
def test_what_cannot_be_searched(changes, message):
    with pytest.raises(OptionError, match=message):
        searching(**changes)


def shape(configuration) -> str:
    schedule = configuration.treatment.schedule
    return "constant" if schedule is None else schedule.shape


@pytest.mark.parametrize(
    ("schedule", "judged"),
    [
        (None, [10, 15, 20]),
        (Schedule(0.8, end=0.5), [10, 15, 20]),
        (Schedule(0.8, begin=0.1, end=0.75), [15, 20]),
        (Schedule(0.8, begin=0.2, end=0.3), [10, 15, 20]),
    ],
)
def test_a_run_is_judged_from_the_end_of_its_ramp_on(tmp_path, schedule, judged):
    trial = Mock(**{"should_prune.return_value": False})
    job = Mock()
    job.name = "sparse-trial-000"
    spec = RunSpec(model="m", data=Data(source="d"), method=TopK(0.8), schedule=schedule)
    asked = Asked(spec, tmp_path / job.name, keep_model=False, command=("crisp",))
    campaign = Campaign(Mock(), Mock(jobs=[job]), Mock(metric=ACCURACY), lambda _: asked, pruned=True)
    campaign.queue.claim.return_value = trial
    assert campaign._claim([])
    for step in (5, 10, 15, 20):
        campaign._hear(job, ("scores", step, 20, {"loss": 1.0, "accuracy": 1 - step / 100}))
    assert [call.args for call in trial.report.call_args_list] == [(1 - step / 100, step) for step in judged]


@pytest.mark.slow
def test_the_best_of_each_is_confirmed_with_fresh_seeds(small_bert, reviews, tmp_path):
    output = tmp_path / "search"
    words = f"--model {small_bert} --dataset {reviews} --output {output} --method topk --search --trials 6 --seeds 1"
    rest = "--workers 2 --learning-rate 1e-2 --batch-size 8 --epochs 2 --training use_cpu=true"
    command = [sys.executable, "-m", "crisp_attention", "sweep", *words.split(), *rest.split()]
    subprocess.run(command, check=True, capture_output=True)
    study = json.loads((output / "study.json").read_text())
    assert study["plan"]["seeds"] == [1]
    dense, sparse, control = study["plan"]["configurations"]
    for kind, count, chosen in (("dense", 2, dense), ("sparse", 4, sparse)):
        trials = pd.read_csv(output / f"search-{kind}.csv")
        assert len(trials) == count
        best = trials.loc[trials.loc[trials["state"] == "COMPLETE", "accuracy"].idxmax()]
        assert chosen["recipe"]["learning_rate"] == pytest.approx(best["learning_rate"])
    assert sparse["treatment"]["spec"] == f"topk:sparsity={round(best['sparsity'], 2)}"
    assert control["treatment"]["spec"] == sparse["treatment"]["spec"].replace("topk", "random")
    assert control["recipe"] == sparse["recipe"]
    assert (output / "report" / "report.html").is_file()
