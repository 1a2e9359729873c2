"""`crisp report A B`: two studies compared."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from crisp_attention.cli.options import ReportOptions
from crisp_attention.cli.report import run_report
from crisp_attention.errors import OptionError
from crisp_attention.runs.spec import Data, Recipe
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.report.comparison import compare
from crisp_attention.studies.study import Study
from tests.studies.reports import HOSTILE, exact
from tests.studies.studies import World, make_study

METHODS = {"dense": 0.80, "topk:sparsity=0.5": 0.82}


def study(folder, accuracies=METHODS, seeds=3, random=0, **values):
    made = make_study(folder, accuracies, seeds, World(examples=200, random=np.random.default_rng(random)))
    replace(made, **values).write()
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a study."""
    return study(tmp_path_factory.mktemp("compared") / "a")


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """That of another with the same seeds and examples, other numbers, and one configuration more."""
    higher = {"topk:sparsity=0.5": 0.88, "dense": 0.85, "topk:sparsity=0.9": 0.8}
    return study(tmp_path_factory.mktemp("compared") / "b", higher)


def compared(first, second):
    return compare(*(Study.open(each).analysis for each in (first, second)))


def accuracies(line):
    return line.runs["score"].to_numpy()


def test_with_the_same_seeds_and_examples_differences_are_paired(first, second):
    found = compared(first, second)
    assert found.paired
    assert [each.first.configuration.spec for each in found.both] == list(METHODS)
    for each in found.both:
        difference = accuracies(each.second) - accuracies(each.first)
        half = stats.t.ppf(0.975, 2) * stats.sem(difference)
        assert each.difference == pytest.approx(difference.mean())
        assert each.interval == pytest.approx(
            (difference.mean(), difference.mean() - half, difference.mean() + half)
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"random": 1}, "the test examples of the two studies differ"), ({"seeds": 4}, "different seeds")],
)
def test_otherwise_only_means_are_compared(first, tmp_path, changes, reason):
    found = compared(first, study(tmp_path / "b", **changes))
    assert not found.paired
    assert found.notes[0].startswith("Only means are compared")
    assert reason in found.notes[0]
    for each in found.both:
        ours, theirs = accuracies(each.first), accuracies(each.second)
        parts = [ours.var(ddof=1) / len(ours), theirs.var(ddof=1) / len(theirs)]
        freedom = sum(parts) ** 2 / sum(
            v**2 / (len(x) - 1) for v, x in zip(parts, (ours, theirs), strict=True)
        )
        half = stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
        assert each.interval.half_width == pytest.approx(half)
        assert each.difference == pytest.approx(theirs.mean() - ours.mean())


def test_one_run_each_has_no_interval(tmp_path):
    found = compared(study(tmp_path / "a", seeds=1), study(tmp_path / "b", seeds=1))
    assert [each.interval for each in found.both] == [None, None]


def test_what_differs_between_the_studies_is_named(first, tmp_path):
    changed = shutil.copytree(first, tmp_path / "b")
    made = StudyFolder.read(changed)
    made = replace(made, versions={**made.versions, "torch": "9.9"})
    recipe = Recipe(learning_rate=5e-5, epochs=5, batch_size=32)
    lines = tuple(replace(each, recipe=recipe) for each in made.configurations)
    data = Data(source="stanfordnlp/sst2", text_columns=("a", "b"))
    replace(made, plan=replace(made.plan, model="other", data=data, configurations=lines)).write()
    assert compared(first, changed).options == {
        "model": ("bert-base-uncased", "other"),
        "text columns": ("not given", "a b"),
        "epochs": ("4", "5"),
        "max length": ("128", "not given"),
        "epochs of dense": ("4", "5"),
        "epochs of topk 50 %": ("4", "5"),
        "version of torch": ("1.2.3", "9.9"),
    }


def test_studies_that_are_judged_differently_are_not_compared(first, tmp_path):
    other = shutil.copytree(first, tmp_path / "b")
    made = StudyFolder.read(other)
    replace(made, plan=replace(made.plan, metric="f1")).write()
    with pytest.raises(OptionError, match=r"a is judged by accuracy, .*b by F1: expected studies of one"):
        compared(first, other)


def test_the_page_shows_it_and_text_stays_text(first, tmp_path, tab, capsys):
    first, second = (Path(shutil.copytree(first, tmp_path / name)) for name in "ab")
    replace(StudyFolder.read(second), name=HOSTILE, versions={"torch": HOSTILE}).write()
    run_report(ReportOptions((first, second)), Console(stderr=True))
    said, notes = capsys.readouterr()
    folder = first / "report-with-b"
    assert str(folder / "report.html") in said
    assert "paired by seed" in notes
    tab.open(folder / "report.html")
    for width in (320, 1400):
        tab.resize(width)
        assert (
            tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        )
    assert tab.evaluate("[typeof window.hit, document.scripts.length]") == ["undefined", 0]
    text = " ".join(tab.evaluate("document.body.textContent").split())
    assert text.count(" ".join(HOSTILE.split())) >= 2
    table = exact(folder / "table.csv")
    shown = tab.evaluate("[...document.querySelectorAll('data')].map(each => +each.value)")
    assert shown == table[["first", "second", "difference"]].to_numpy().ravel().tolist()
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert "| dense | " in summary
    assert "<script" not in summary.replace("\\<", "")


def test_studies_that_share_nothing_say_so(first, tmp_path):
    empty = shutil.copytree(first, tmp_path / "b")
    shutil.rmtree(empty / "runs")
    run_report(ReportOptions((empty, first), output=tmp_path / "out"), Console(quiet=True))
    assert "No configuration has finished runs in both." in (tmp_path / "out" / "report.html").read_text()
