import sys

import datasets
import pytest

from crisp_attention.cli import main as cli
from crisp_attention.studies.analysis import analyse
from crisp_attention.studies.report import writing
from crisp_attention.studies.report.writing import write_report
from crisp_attention.studies.sweep import pool
from tests.runs import small
from tests.studies.reports import hostile_study
from tests.studies.sweeping import database, each_once, small_plan, states, swept
from tests.studies.viewing import FOUR, TEXT, save_bert


@pytest.fixture(scope="session", autouse=True)
def _quick_runs():
    """The processes of runs draw no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "PRELOADED", [*pool.PRELOADED, "tests.studies.quick"])
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A random BERT whose tokenizer splits at spaces, saved in a folder."""
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory) -> str:
    """A folder with a small classifier that can be fine-tuned on `reviews`."""
    return small.bert(tmp_path_factory.mktemp("small-bert"))


@pytest.fixture
def view(bert, tmp_path, monkeypatch, capsys):
    """Runs `crisp view`: exit status, standard output, standard error, and the file. No methods: its own choice."""

    def run(*flags, model=bert, text=TEXT, methods=FOUR):
        output = tmp_path / "view.html"
        asked = [] if "--method" in flags else [word for each in methods for word in ("--method", each)]
        words = ["crisp", "view", "--model", model, "--text", text, "--output", output, *asked, *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        capsys.readouterr()  # what building the models has printed
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr(), output

    return run


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The analysis of the study with traps, and the folder of its report."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        analysis = analyse(hostile_study(folder / "study"))
        write_report(analysis, folder / "report")
        return analysis, folder / "report"


@pytest.fixture
def no_figures(monkeypatch):
    """Reports have no figures, which take longer than all else."""
    for name in ("main_pictures", "curve_pictures", "head_pictures", "layer_pictures"):
        monkeypatch.setattr(writing, name, lambda analysis: [])


@pytest.fixture(scope="session")
def undisturbed(small_bert, reviews, tmp_path_factory):
    """The folder of a study of two configurations, two seeds and eight epochs that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as a `Worker` has it: the results are the same to the last bit
        swept(small_plan(small_bert, reviews, seeds=2, epochs=8), output)
    each_once(states("study", database(output)), 4)
    return output
