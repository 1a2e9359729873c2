"""Recipes chosen on validation: what Optuna chooses from, and what is confirmed afterwards."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest

from crisp_attention.evidence.options import SweepOptions
from crisp_attention.evidence.sweep.search import Search
from crisp_attention.training.options import OptionError

OPTIONS = SweepOptions(
    model="m",
    dataset="d",
    output=Path("unused"),
    method=("topk,entmax:alpha=1.5", "random"),
    search=True,
    trials=9,
    learning_rate=1e-4,
)


@pytest.fixture
def drawn():
    """Forty choices for sparse, ten for dense."""
    study = optuna.create_study()

    def draw(search: Search):
        for number in range(50):
            study.enqueue_trial({"kind": "sparse" if number % 5 else "dense"})
        return [search.suggest(study.ask()) for _ in range(50)]

    return draw


def test_a_third_of_the_trials_is_dense():
    planned = Search(OPTIONS, layers=6).planned()
    assert [each.name for each in planned] == [f"trial-00{n}" for n in range(9)]
    assert [each.fixed["kind"] for each in planned].count("dense") == 3


def test_dense_and_sparse_choose_their_learning_rate_and_only_sparse_the_rest(drawn):
    found = drawn(Search(OPTIONS, layers=6))
    dense = [each for each in found if each.is_dense]
    assert len(dense) == 10
    assert {(each.schedule, each.layers) for each in dense} == {("constant", ())}
    assert all(2.5e-5 <= each.learning_rate <= 4e-4 for each in found)
    assert len({each.learning_rate for each in dense}) == 10
    sparse = [each for each in found if not each.is_dense]
    assert {each.name for each in sparse} == {"topk", "entmax"}  # random keys are the control, not a choice
    topk = [each for each in sparse if each.name == "topk"]
    assert all(0.3 <= each.sparsity <= 0.95 and len(str(each.sparsity)) <= 4 for each in topk)
    assert {each.layers for each in sparse} == {(), ("0-2",), ("3-5",)}
    assert {each.schedule for each in topk} == {"constant", "linear", "cubic"}
    assert {each.schedule for each in sparse if each.name == "entmax"} == {"constant"}


def test_what_the_user_says_is_not_searched(drawn):
    said = replace(OPTIONS, layers=("1-2",), schedule="cosine", sparsity=("0.6", "0.8"))
    sparse = [each for each in drawn(Search(said, layers=6)) if each.name == "topk"]
    assert {each.layers for each in sparse} == {("1-2",)}
    assert {each.schedule for each in sparse} == {"cosine"}
    assert {each.sparsity for each in sparse} <= {0.6, 0.65, 0.7, 0.75, 0.8}


def test_the_control_alone_cannot_be_searched():
    with pytest.raises(OptionError, match="random keys are the control"):
        Search(replace(OPTIONS, method=("random",)), layers=6)


@pytest.mark.slow
def test_the_best_of_each_is_confirmed_with_fresh_seeds(small_bert, reviews, tmp_path):
    output = tmp_path / "search"
    words = f"--model {small_bert} --dataset {reviews} --output {output} --method topk --search --trials 6 --seeds 2"
    rest = "--workers 2 --learning-rate 1e-2 --batch-size 8 --epochs 2 --training use_cpu=true"
    command = [sys.executable, "-m", "crisp_attention", "sweep", *words.split(), *rest.split()]
    subprocess.run(command, check=True, capture_output=True)
    trials = pd.read_csv(output / "search.csv")
    done = trials[trials["state"] == "COMPLETE"]
    assert len(trials) == 6
    study = json.loads((output / "study.json").read_text())
    assert study["seeds"] == [1, 2]
    dense, sparse, control = study["configurations"]
    best = {kind: rows.loc[rows["value"].idxmax()] for kind, rows in done.groupby("params_kind")}
    assert dense["learning_rate"] == pytest.approx(best["dense"]["params_learning_rate"])
    assert sparse["learning_rate"] == pytest.approx(best["sparse"]["params_learning_rate"])
    assert sparse["method"] == f"topk:sparsity={best['sparse']['params_sparsity']:.4g}"
    assert control == sparse | {"method": sparse["method"].replace("topk", "random"), "note": control["note"]}
    assert (output / "report" / "report.html").is_file()
