import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from crisp_attention.errors import OptionError
from crisp_attention.runs.task.metrics import ACCURACY, MCC
from crisp_attention.studies.analysis import Comparison, Verdict, analyse, answer, correction, statements
from crisp_attention.studies.analysis.compare import Evidence, compare, decide
from crisp_attention.studies.analysis.read import COLUMNS
from crisp_attention.studies.analysis.verdicts import sentence
from crisp_attention.studies.attention import DENSE
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.numbers import Unit
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import Interval
from tests.studies.studies import World, make_study

TOPK, RANDOM, WINDOW = "topk:sparsity=0.8", "random:sparsity=0.8", "window:width=9"
TRUTH = {"dense": 0.85, TOPK: 0.85, RANDOM: 0.65, WINDOW: 0.93}


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    return analyse(make_study(tmp_path_factory.mktemp("studies") / "whole", TRUTH))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a study of four runs."""
    truth = {"dense": 0.8, TOPK: 0.8}
    return make_study(tmp_path_factory.mktemp("tiny") / "s", truth, seeds=2, world=World(examples=50)).path


@pytest.fixture
def copied(analysis, tmp_path):
    """A copy of the whole study, to be changed."""
    return StudyFolder.read(shutil.copytree(analysis.study.path, tmp_path / "copy"))


def line(analysis, method):
    return next(each for each in analysis.lines if each.configuration.spec == method)


def rewritten(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def first_run(study, method="dense"):
    return study.directory(next(each for each in study.configurations if each.spec == method), 0)


def diverged(study, configuration):
    """The configuration's first run that diverged."""
    return next(run for run in study.ended(configuration) if run.diverged)


def test_the_truth_of_a_study_is_found(analysis):
    verdicts = {each.configuration.spec: each.to_dense and each.to_dense.verdict for each in analysis.lines}
    expected = {"dense": None, TOPK: Verdict.NOT_SHOWN, RANDOM: Verdict.WORSE, WINDOW: Verdict.BETTER}
    assert verdicts == expected
    assert line(analysis, TOPK).to_random.verdict is Verdict.BETTER
    assert line(analysis, TOPK).to_random.baseline.spec == RANDOM
    assert line(analysis, WINDOW).to_random is None  # it has no control
    assert line(analysis, RANDOM).to_random is None


def test_the_numbers_are_those_of_the_files(analysis):
    found, dense = line(analysis, TOPK), line(analysis, "dense")
    assert analysis.split == "test"
    assert found.runs.columns.tolist() == COLUMNS
    files = analysis.study.finished(found.configuration)
    accuracies = [each.metrics["test"]["accuracy"] for each in files]
    assert found.runs["score"].tolist() == accuracies
    assert found.score.mean == pytest.approx(np.mean(accuracies))
    assert found.sd == pytest.approx(np.std(accuracies, ddof=1))
    gap = files[0].metrics["train"]["accuracy"] - files[0].metrics["validation"]["accuracy"]
    assert found.runs["gap"][0] == pytest.approx(gap)
    assert (found.relative_time, found.relative_memory) == pytest.approx((0.122 / 0.102, 1.5))
    assert (dense.relative_time, dense.relative_memory) == (1, 1)
    differences = found.runs["score"] - dense.runs["score"]
    assert found.to_dense.difference.mean == pytest.approx(differences.mean())
    assert found.to_dense.bootstrap.mean == pytest.approx(differences.mean())


def test_mcnemar_s_table_counts_what_only_one_side_has_right(analysis):
    found = line(analysis, TOPK)
    runs, dense = analysis.study.finished(found.configuration), analysis.study.finished(analysis.study.dense)
    for row, run, other in zip(found.to_dense.mcnemar.itertuples(), runs, dense, strict=True):
        ours, its = run.predictions("test"), other.predictions("test")
        right, its_right = ours["prediction"] == ours["label"], its["prediction"] == its["label"]
        assert (row.gained, row.lost) == ((right & ~its_right).sum(), (~right & its_right).sum())


def test_flips_count_the_pairs_of_equal_seeds(analysis):
    flips, study = analysis.flips, analysis.study
    top = flips.iloc[0]
    sparse = [each for each in study.configurations if each.spec in (TOPK, WINDOW)]
    differ = [
        run.predictions("test")["prediction"][top["index"]]
        != dense.predictions("test")["prediction"][top["index"]]
        for each in sparse
        for run, dense in zip(study.finished(each), study.finished(study.dense), strict=True)
    ]
    assert (top["flips"], top["pairs"]) == (sum(differ), len(differ))
    assert top["gained"] + top["lost"] == top["flips"]  # two classes: a flip is right before or after
    assert flips["flips"].is_monotonic_decreasing
    assert len(flips) <= 50
    assert flips.columns.tolist()[6:] == [each.id for each in sparse]


def test_a_whole_study_needs_no_notes(analysis):
    assert analysis.notes == ()


def test_an_unfinished_study_says_what_is_absent(tmp_path):
    missing = [(TOPK, seed) for seed in (1, 3)]
    study = make_study(tmp_path / "s", TRUTH, seeds=4, failed={(WINDOW, 1): "out of memory"}, missing=missing)
    found = analyse(study)
    assert line(found, WINDOW).to_dense.seeds == (0, 2, 3)
    assert line(found, TOPK).to_dense is line(found, TOPK).score is None
    assert found.notes == (
        "failed: window:width=9, seed 1: out of memory",
        "2 of 16 runs are still to do, or were finished on another machine: copy their folders here "
        "(topk 80 % seed 1, topk 80 % seed 3)",
        "intervals over 3 seeds are wide: use 5 or more",
        "topk 80 % is not compared with dense: a comparison needs 3 seeds that both have, and there are 2",
        "topk 80 % is not compared with random 80 %: a comparison needs 3 seeds that both have, and there are 2",
    )


def test_a_diverged_run_is_named_and_counts_nowhere_else(tmp_path):
    truth = {"dense": 0.85, TOPK: 0.85}
    with_it = make_study(tmp_path / "a", truth, diverged=[(TOPK, 2)])
    without = StudyFolder.read(shutil.copytree(with_it.path, tmp_path / "b"))
    shutil.rmtree(diverged(without, without.configurations[1]).directory.path)
    found, expected = line(analyse(with_it), TOPK), line(analyse(without), TOPK)
    assert (found.diverged, len(found.runs)) == ((2,), 4)
    assert found.runs.equals(expected.runs)
    assert found.to_dense.difference == expected.to_dense.difference
    assert found.to_dense.bootstrap == expected.to_dense.bootstrap
    assert with_it.missing() == []
    assert analyse(with_it).notes[0].startswith("diverged: topk 80 %, seed 2: the loss is not finite")
    metrics = diverged(with_it, found.configuration).directory.metrics
    metrics.write_text(metrics.read_text().replace("null", "NaN"))  # as versions before wrote it
    assert line(analyse(with_it), TOPK).diverged == (2,)


def test_a_study_whose_runs_all_diverged_says_so(tmp_path):
    truth = {"dense": 0.85, TOPK: 0.85}
    study = make_study(tmp_path / "s", truth, 3, diverged=[(each, s) for each in truth for s in range(3)])
    found = analyse(study)
    assert all(each.diverged == (0, 1, 2) and each.to_dense is None for each in found.lines)
    assert answer(found).startswith("Nothing can be said yet")


def test_two_seeds_say_nothing(tmp_path):
    found = analyse(make_study(tmp_path / "s", TRUTH, seeds=2))
    assert all(each.to_dense is each.to_random is each.score is None for each in found.lines)
    assert answer(found) == (
        "Nothing can be said yet: no sparse configuration shares 3 seeds with dense, which a comparison needs."
    )


def test_a_baseline_that_learned_nothing_is_noted(tmp_path):
    levels = {"dense": 0.53, TOPK: 0.55}
    note = analyse(make_study(tmp_path / "a", levels, world=World(examples=300))).notes[-1]
    assert "is not shown to be more accurate than always answering the most frequent class" in note
    level = {"dense": 0.65, TOPK: 0.65}
    assert analyse(make_study(tmp_path / "b", level, world=World(examples=300))).notes == ()


def test_what_computed_the_attention_is_said(analysis, copied):
    kernels = {each.configuration.spec: each.kernels for each in analysis.lines}
    assert kernels == {"dense": ("sdpa",), TOPK: ("cpu",), RANDOM: ("cpu",), WINDOW: ("cpu",)}
    rewritten(first_run(copied, TOPK).metrics, kernels=["cpu", "reference"])
    assert line(analyse(copied), TOPK).kernels == ("cpu", "reference")


def test_a_study_without_runs_is_empty(tmp_path):
    missing = [(method, seed) for method in TRUTH for seed in range(2)]
    found = analyse(make_study(tmp_path / "s", TRUTH, seeds=2, missing=missing))
    assert all(len(each.runs) == 0 and each.to_dense is None for each in found.lines)
    assert len(found.flips) == 0


def test_without_a_test_split_validation_counts_and_a_note_warns(tmp_path):
    found = analyse(make_study(tmp_path / "s", {"dense": 0.85, TOPK: 0.85}, splits=["validation"]))
    assert found.split == "validation"
    assert "must not have been used for choosing" in found.notes[0]


def test_other_versions_and_devices_are_noted(copied):
    directory = first_run(copied)
    rewritten(directory.config, versions={"torch": "9.9"})
    rewritten(directory.metrics, device="cuda:0")
    assert analyse(copied).notes == (
        "the runs were made with different versions of torch: 1.2.3 (19 runs), 9.9 (1 run)",
        "the runs were made on different devices, so times and memory cannot be compared: "
        "cpu (19 runs), cuda (1 run)",
    )


def test_runs_on_other_examples_are_refused(copied):
    file = first_run(copied, TOPK).predictions("test")
    table = pd.read_parquet(file)
    table.assign(label=1 - table["label"]).to_parquet(file)
    with pytest.raises(
        OptionError, match=r"dense-seed-0 and topk-sparsity-0\.8-seed-0 .* different examples"
    ):
        analyse(copied)


@pytest.mark.parametrize("name", ["metrics.json", "config.json", "predictions-test.parquet"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"PAR1"])
def test_a_damaged_file_is_named(tiny, tmp_path, name, content):
    study = StudyFolder.read(shutil.copytree(tiny, tmp_path / "s"))
    (first_run(study).path / name).write_bytes(content)
    with pytest.raises(OptionError, match=rf"dense-seed-0/{name} is damaged"):
        analyse(study)


def comparison(verdict, mean, low, high, detectable):
    evidence = Evidence(Interval(mean, mean, mean), Interval(mean, low, high), 0.5, 0.5, detectable)
    return Comparison(
        baseline=Configuration(DENSE),
        seeds=(0, 1),
        comparisons=4,
        p=0.053,
        mcnemar=None,
        p_mcnemar=None,
        verdict=verdict,
        **evidence._asdict(),
    )


@pytest.mark.parametrize(
    ("metric", "verdict", "numbers", "words"),
    [
        (
            ACCURACY,
            Verdict.BETTER,
            (0.012, 0.004, 0.02, 0.01),
            "better: +1.20 points (bootstrap: +0.40 to +2.00)",
        ),
        (
            MCC,
            Verdict.WORSE,
            (-0.03, -0.041, -0.019, 0.01),
            "worse: −0.030 MCC (bootstrap: −0.041 to −0.019)",
        ),
        (
            ACCURACY,
            Verdict.NOT_SHOWN,
            (-0.0002, -0.009, 0.015, 0.016),
            "no difference shown: −0.02 points (bootstrap: −0.90 to +1.50); smallest detectable difference ±1.60",
        ),
        (
            ACCURACY,
            Verdict.NOT_SHOWN,
            (-0.01, -0.02, -0.001, 0.016),
            "no difference shown: −1.00 points (bootstrap: −2.00 to −0.10); p = 0.053 once corrected "
            "for 4 comparisons (Holm); smallest detectable difference ±1.60",
        ),
        (
            ACCURACY,
            Verdict.NOT_SHOWN,
            (0, 0, 0, 0),
            "no difference shown: right and wrong on the same examples as dense",
        ),
    ],
)
def test_the_verdict_in_words(metric, verdict, numbers, words):
    assert sentence(comparison(verdict, *numbers), Unit(metric)) == words


def test_the_main_metric_of_a_study_is_compared_like_accuracy(tmp_path):
    study = make_study(tmp_path / "s", TRUTH, metric="mcc")
    found = analyse(study)
    assert found.metric is MCC
    for each in found.lines:
        runs = [run.predictions("test") for run in study.finished(each.configuration)]
        scores = [matthews_corrcoef(run["label"], run["prediction"]) for run in runs]
        assert each.runs["score"].tolist() == pytest.approx(scores)
        if each.to_dense:
            differences = each.runs["score"] - line(found, "dense").runs["score"]
            assert each.to_dense.difference.mean == pytest.approx(differences.mean())
            assert each.to_dense.bootstrap.mean == pytest.approx(differences.mean())
            assert each.to_dense.mcnemar is each.to_dense.p_mcnemar is None
    verdicts = {each.configuration.spec: each.to_dense and each.to_dense.verdict for each in found.lines}
    assert verdicts == {
        "dense": None,
        TOPK: Verdict.NOT_SHOWN,
        RANDOM: Verdict.WORSE,
        WINDOW: Verdict.BETTER,
    }
    assert answer(found).startswith(
        "Yes, in 1 of 2 sparse configurations: a higher MCC than dense with window"
    )


def test_every_comparison_has_a_statement_also_where_nothing_can_be_said(analysis, tmp_path):
    pairs = [(each.configuration.spec, each.baseline.spec) for each in statements(analysis)]
    assert pairs == [(TOPK, "dense"), (TOPK, RANDOM), (RANDOM, "dense"), (WINDOW, "dense")]
    assert [each.verdict for each in statements(analysis)] == [
        Verdict.NOT_SHOWN,
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.BETTER,
    ]
    assert correction(analysis).startswith("Corrected for 3 comparisons with dense (Holm): ")
    failed = {(TOPK, seed): "crashed" for seed in (0, 1, 2)}
    truth = {"dense": 0.85, TOPK: 0.85}
    few = statements(analyse(make_study(tmp_path / "few", truth, failed=failed)))
    assert few[0].verdict is None
    assert few[0].words == "nothing can be said: a comparison needs 3 seeds that both have, and there are 2"
    unfinished = analyse(make_study(tmp_path / "unfinished", truth, missing=[(TOPK, 4)]))
    assert answer(unfinished) == "9 of 10 runs are finished: no verdict yet."
    assert {each.verdict for each in statements(unfinished)} == {None}


def test_identical_answers_show_nothing():
    correct = np.random.default_rng(0).random((3, 50)) < 0.8
    found = compare(correct, correct, 1)
    assert (found.p_seeds, found.p_bootstrap, found.detectable) == (1, 1, 0)
    assert decide([found]) == [(1, Verdict.NOT_SHOWN)]


def test_both_tests_must_speak_and_every_comparison_raises_the_bar():
    def evidence(p_seeds, p_bootstrap, mean=0.1):
        return Evidence(Interval(mean, 0, 0), Interval(mean, 0, 0), p_seeds, p_bootstrap, 0.1)

    assert decide([evidence(0.001, 0.2)]) == [(0.2, Verdict.NOT_SHOWN)]
    assert decide([evidence(0.2, 0.001)]) == [(0.2, Verdict.NOT_SHOWN)]
    assert decide([evidence(0.001, 0.03)]) == [(0.03, Verdict.BETTER)]
    assert decide([evidence(0.001, 0.03), evidence(0.04, 0.01)]) == [(0.06, Verdict.NOT_SHOWN)] * 2
    assert decide([evidence(0.01, 0.001, mean=-0.1), evidence(0.6, 0.3)]) == [
        (0.02, Verdict.WORSE),
        (0.6, Verdict.NOT_SHOWN),
    ]


@given(st.permutations(range(4)), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_order_of_seeds_and_the_side_change_only_the_sign(order, seed):
    ours, its = np.random.default_rng(seed).random((2, 4, 60)) < 0.8
    found, mirrored = compare(ours, its, 3, 5000), compare(its[order], ours[order], 3, 5000)
    assert mirrored.difference == pytest.approx(
        (-found.difference.mean, -found.difference.high, -found.difference.low)
    )
    assert mirrored.p_seeds == pytest.approx(found.p_seeds)
    assert mirrored.p_bootstrap == pytest.approx(found.p_bootstrap, abs=0.1)  # other draws
    assert mirrored.detectable == pytest.approx(found.detectable, rel=0.1)


def test_the_fake_study_reads_as_it_was_made(analysis):
    assert StudyFolder.read(analysis.study.path) == analysis.study


def test_peaks_of_whole_processes_are_not_compared_without_a_word(copied):
    for run in copied.finished(copied.configurations[1])[:2]:
        kept = {name: value for name, value in run.metrics.items() if name != "peak_memory_of"}
        run.directory.metrics.write_text(json.dumps(kept))
    (note,) = analyse(copied).notes
    assert note.startswith("peak memory of 2 of 20 runs is that of the whole process")
