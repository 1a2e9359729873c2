"""A small study from end to end: every run once, and what is refused."""

import io
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from crisp_attention.cli import main as cli
from crisp_attention.errors import OptionError
from crisp_attention.runs.options import words as typed
from crisp_attention.studies.options import SweepOptions
from crisp_attention.studies.study import Study, failure_file
from crisp_attention.studies.sweep.command import sweep
from tests.studies.sweeping import database, metrics_files, states


@pytest.fixture(scope="module", autouse=True)
def _own_cache(own_cache) -> None:
    pass


def swept(options):
    """Sweep; the study and what was said."""
    console = Console(file=io.StringIO(), width=80)
    return sweep(options, console), console.file.getvalue()


@pytest.fixture(scope="module")
def finished(small_bert, reviews, tmp_path_factory):
    """The options of a study of four runs, of which one had no place for itself, and what was said."""
    output = tmp_path_factory.mktemp("sweep") / "study"
    options = SweepOptions(
        model=small_bert,
        dataset=reviews,
        output=output,
        method=("topk",),
        sparsity=("0.5",),
        seeds=2,
        epochs=1.0,
        batch_size=8,
        training=("use_cpu=true",),
        workers=3,
    )
    strange = output / "runs" / "topk-sparsity-0.5-seed-1" / "notes.txt"
    strange.parent.mkdir(parents=True)
    strange.write_text("somebody's")
    left = output / "runs" / "dense-seed-0" / "checkpoints"  # of a run that was killed before it began
    left.mkdir(parents=True)
    return options, *swept(options)


def test_every_run_is_done_once_and_a_failure_stops_no_other(finished):
    options, study, said = finished
    assert states("study", database(options.output)) == {
        "dense-seed-0": ["COMPLETE"],
        "topk-sparsity-0.5-seed-0": ["COMPLETE"],
        "dense-seed-1": ["COMPLETE"],
        "topk-sparsity-0.5-seed-1": ["FAIL"],
    }
    reason = study.failed()["topk-sparsity-0.5", 1]
    assert "holds files that are not of a Crisp run (notes.txt)" in reason
    assert f"topk-sparsity-0.5-seed-1: failed: {reason}; its log is {options.output / 'logs'}" in said
    assert "dense-seed-0: validation accuracy " in said
    assert study.missing() == []
    log = options.output / "logs" / "topk-sparsity-0.5-seed-1.log"
    assert "Traceback" in log.read_text()


def test_the_same_command_does_what_is_left_and_no_more(finished, tmp_path):
    options = replace(finished[0], output=Path(shutil.copytree(finished[0].output, tmp_path / "study")))
    done = metrics_files(options.output)
    assert len(done) == 3
    _, said = swept(options)
    assert metrics_files(options.output) == done
    assert "validation accuracy" not in said
    shutil.rmtree(options.output / "runs" / "topk-sparsity-0.5-seed-1")
    study, said = swept(replace(options, retry_failed=True))
    assert metrics_files(options.output).items() > done.items()
    assert said.count("validation accuracy") == 1
    assert study.failed() == {}
    assert not failure_file(options.output / "runs" / "topk-sparsity-0.5-seed-1").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2.0}, "--epochs was 1.0, is 2.0"),
        ({"seeds": 3}, "--seeds was 2, is 3"),
        ({"sparsity": ("0.6",)}, "--sparsity was 0.5, is 0.6"),
        ({"recipe": ("dense:epochs=2",)}, "--recipe was not given, is dense:epochs=2"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
    ],
)
def test_what_would_change_results_is_refused_by_its_name(finished, changes, message):
    before = metrics_files(finished[0].output)
    with pytest.raises(OptionError, match=message):
        sweep(replace(finished[0], **changes), Console(quiet=True))
    assert metrics_files(finished[0].output) == before


def test_a_folder_of_something_else_is_refused(finished, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds files that are not of a study \(letter.txt\)"):
        sweep(replace(finished[0], output=tmp_path), Console(quiet=True))
    with pytest.raises(OptionError, match=r"letter.txt is a file; expected a folder"):
        sweep(replace(finished[0], output=tmp_path / "letter.txt"), Console(quiet=True))
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_a_study_whose_record_was_cut_short_goes_on(finished, tmp_path):
    options = replace(finished[0], output=Path(shutil.copytree(finished[0].output, tmp_path / "study")))
    (options.output / "study.json").rename(options.output / "study.partial")
    study, _ = swept(options)
    assert Study.read(options.output).seeds == study.seeds == (0, 1)


def test_a_finished_study_is_told_to_a_terminal_of_few_characters(finished, monkeypatch):
    options, study, _ = finished
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    words = ["sweep", *typed(replace(options, retry_failed=False))]
    for name, value in (("argv", ["crisp", *words]), ("stdout", out), ("stderr", err)):
        monkeypatch.setattr(sys, name, value)
    with pytest.raises(SystemExit) as end:
        cli.main()
    monkeypatch.undo()
    assert end.value.code == 3  # one run failed
    err.flush()
    assert "+/-" in out.buffer.getvalue().decode("ascii")
    assert err.buffer.getvalue().decode("ascii").splitlines()[-1].startswith("1 runs failed")
    for log in (study.path / "logs").glob("*.log"):
        log.read_text(encoding="utf-8")
