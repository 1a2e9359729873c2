"""A small study from end to end: every run once, what it grows by, and what is refused."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import DatasetDict
from rich.console import Console

import crisp_attention as crisp
from crisp_attention.cli import main as cli
from crisp_attention.errors import OptionError
from crisp_attention.runs.data import load_task
from crisp_attention.runs.spec import Data
from crisp_attention.studies.folder import StudyFolder, failure_file
from crisp_attention.studies.plan import planned
from crisp_attention.studies.sweep import sweep as sweeping
from crisp_attention.studies.sweep.check import check
from crisp_attention.studies.sweep.sweep import Work, carry_out
from tests.studies.sweeping import database, metrics_files, states, swept
from tests.studies.toy import Magnitude

RECIPE = crisp.Recipe(epochs=1, batch_size=8, training={"use_cpu": True})
TIMES = ["seconds_per_step", "peak_memory_bytes", "relative_time", "relative_memory"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(own_cache) -> None:
    pass


@pytest.fixture
def no_runs(monkeypatch) -> None:
    """Studies are planned and recorded, and nothing is run."""
    monkeypatch.setattr(sweeping, "_run_all", lambda *given: None)


@pytest.fixture(scope="module")
def finished(small_bert, reviews, tmp_path_factory):
    """The plan of a study of two runs, of which one had no place for itself, its folder, and what was said."""
    output = tmp_path_factory.mktemp("sweep") / "study"
    strange = output / "runs" / "topk-sparsity-0.5-seed-0" / "notes.txt"
    strange.parent.mkdir(parents=True)
    strange.write_text("not of a run")
    left = output / "runs" / "dense-seed-0" / "checkpoints"  # of a run that was killed before it began
    left.mkdir(parents=True)
    plan = planned(small_bert, Data(source=reviews), [crisp.TopK(0.5)], 1, recipe=RECIPE)
    console = Console(file=io.StringIO(), width=80)
    study = carry_out(plan, Work(output=output, workers=2), console, command=("crisp", "sweep"))
    return plan, study, console.file.getvalue()


@pytest.fixture
def copied(finished, tmp_path):
    """The plan, and a folder with a copy of the study."""
    return finished[0], Path(shutil.copytree(finished[1].path, tmp_path / "study"))


@pytest.mark.slow
def test_every_run_is_done_once_and_a_failure_stops_no_other(finished):
    _, study, said = finished
    assert states("study", database(study.path)) == {
        "dense-seed-0": ["COMPLETE"],
        "topk-sparsity-0.5-seed-0": ["FAIL"],
    }
    reason = study.failed()["topk-sparsity-0.5", 0]
    assert "holds files that do not belong to a Crisp run (notes.txt)" in reason
    assert f"topk-sparsity-0.5-seed-0: failed: {reason}; see its log {study.path / 'logs'}" in said
    assert "dense-seed-0: validation accuracy " in said
    assert study.missing() == []
    assert "Traceback" in (study.path / "logs" / "topk-sparsity-0.5-seed-0.log").read_text()


def test_the_same_study_does_what_is_left_and_no_more(copied):
    plan, output = copied
    done, record = metrics_files(output), (output / "study.json").read_bytes()
    _, said = swept(plan, output)
    assert metrics_files(output) == done
    assert (output / "study.json").read_bytes() == record
    assert "validation accuracy" not in said


@pytest.mark.slow
def test_a_study_that_grew_is_the_study_that_was_planned_so_from_the_start(copied, tmp_path):
    plan, output = copied
    before = metrics_files(output)
    shutil.rmtree(output / "runs" / "topk-sparsity-0.5-seed-0")
    methods = [crisp.TopK(0.5), crisp.RandomK(0.5)]
    study = crisp.sweep(
        plan.model,
        plan.data,
        methods,
        output=output,
        seeds=2,
        recipe=RECIPE,
        workers=2,
        retry_failed=True,
        verbose=False,
    )
    found = study.folder
    assert found.missing() == []
    assert study.failed() == {}
    assert not failure_file(output / "runs" / "topk-sparsity-0.5-seed-0").exists()
    assert metrics_files(output).items() > before.items()
    (added,) = found.additions
    assert (added.configurations, added.seeds) == (("random 50 %",), (1,))
    assert StudyFolder.read(output) == found
    assert (found.command, found.created) == (("crisp", "sweep"), StudyFolder.read(output).created)

    whole = planned(plan.model, plan.data, methods, 2, recipe=RECIPE)
    shutil.copytree(output / "runs", tmp_path / "whole" / "runs")
    other = crisp.Study(StudyFolder.begin(tmp_path / "whole", "study", whole, ("crisp",), None))
    assert study.table().to_csv() == other.table().to_csv()
    assert [each.verdict for each in study.verdicts()] == [None, None, None]
    assert (study.table()["runs"] == 2).all()


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_a_treatment_of_weights_is_swept_measured_and_reported(small_bert, reviews, tmp_path):
    study = crisp.sweep(
        small_bert,
        reviews,
        [Magnitude(0.75)],
        output=tmp_path / "study",
        seeds=2,
        recipe=RECIPE,
        workers=2,
        verbose=False,
    )
    table = study.table().set_index("method")
    assert table.loc["magnitude:sparsity=0.75", "achieved_sparsity"] == pytest.approx(0.75, abs=0.01)
    assert table.loc["dense", "achieved_sparsity"] == 0
    assert study.analysis.words == "weights"
    assert "magnitude 75 %" in study.report().read_text()
    run = study.folder.directory(study.folder.configurations[1], 0)
    assert run.spec().treatment == Magnitude(0.75)
    assert crisp.Study.open(tmp_path / "study").folder.plan == study.folder.plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": replace(RECIPE, epochs=2.0)}, "epochs was 1, is 2.0"),
        ({"recipes": {"topk": replace(RECIPE, learning_rate=1e-3)}}, "topk 50 %: learning_rate was 2e-05"),
        ({"methods": [crisp.RandomK(0.5)]}, "has topk 50 % already: a study can only grow"),
        ({"seeds": (1, 2)}, "has seed 0 already: a study can only grow"),
        ({"metric": "mcc"}, "metric was not given, is mcc"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"methods": [crisp.Dense()]}, "methods name only dense attention: there is nothing to compare"),
        ({"recipes": {"topp": RECIPE}}, "no configuration of the study is topp; it has dense, topk"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_what_would_change_results_or_remove_some_is_refused_before_anything_is_read(
    copied, changes, message, monkeypatch
):
    monkeypatch.setattr(sweeping, "check", lambda *given: pytest.fail("read"))
    plan, output = copied
    before = metrics_files(output)
    given = {"methods": [crisp.TopK(0.5)], "seeds": 1, "recipe": RECIPE} | changes
    with pytest.raises(OptionError, match=message):
        crisp.sweep(plan.model, plan.data, output=output, verbose=False, **given)
    assert metrics_files(output) == before


def test_a_method_that_leaves_the_data_dense_is_told_of_before_it_is_compared(small_bert, reviews, tmp_path):
    methods = [crisp.SparseLinear(0.3), crisp.SparseLinear(0.3, block_size=2)]
    said: list[str] = []
    check(planned(small_bert, Data(source=reviews), methods, 1, recipe=RECIPE), tmp_path, said.append)
    assert [each for each in said if "nothing is dropped" in each] == [
        "sparse_linear:critical=0.3: nothing is dropped, not even of the longest examples: this is dense attention"
    ]


def test_a_storage_that_holds_another_study_is_refused(copied, small_bert, reviews, tmp_path, no_runs):
    plan, output = copied
    other = replace(plan, model=str(shutil.copytree(small_bert, tmp_path / "bert")))
    with pytest.raises(OptionError, match=r"study\.db, study, was started with other values: model was"):
        swept(other, tmp_path / "new", storage=database(output), name="study")


@pytest.mark.slow
def test_data_in_memory_are_kept_once_and_others_are_refused(small_bert, reviews, tmp_path, no_runs):
    splits = DatasetDict(
        {name: rows.remove_columns("index") for name, rows in load_task(Data(source=reviews)).splits.items()}
    )
    given = {"methods": [crisp.TopK(0.5)], "output": tmp_path / "study", "recipe": RECIPE, "verbose": False}
    study = crisp.sweep(small_bert, splits, **given)
    assert study.folder.plan.data.source == str(tmp_path / "study" / "data")
    assert load_task(study.folder.plan.data).splits["train"]["labels"] == splits["train"]["labels"]
    shutil.move(tmp_path / "study", tmp_path / "renamed")  # the contents count
    given["output"] = tmp_path / "renamed"
    crisp.sweep(small_bert, splits, **given)
    with pytest.raises(OptionError, match="data differ from those in "):
        crisp.sweep(small_bert, splits["train"], **given)


def test_a_folder_of_something_else_is_refused(finished, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds files that do not belong to a study \(letter.txt\)"):
        swept(finished[0], tmp_path)
    with pytest.raises(OptionError, match=r"letter.txt is a file; expected a folder"):
        swept(finished[0], tmp_path / "letter.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_a_study_whose_record_was_cut_short_goes_on(copied):
    plan, output = copied
    (output / "study.json").rename(output / "study.partial")
    study, _ = swept(plan, output)
    assert StudyFolder.read(output).plan == study.plan == plan


@pytest.mark.usefixtures("no_figures")
def test_a_finished_study_is_told_to_a_terminal_of_few_characters(copied, monkeypatch):
    plan, output = copied
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    words = f"sweep --model {plan.model} --dataset {plan.data.source} --output {output} --method topk --sparsity 0.5"
    recipe = "--seeds 1 --epochs 1 --batch-size 8 --training use_cpu=true"
    for name, value in (
        ("argv", ["crisp", *words.split(), *recipe.split()]),
        ("stdout", out),
        ("stderr", err),
    ):
        monkeypatch.setattr(sys, name, value)
    with pytest.raises(SystemExit) as end:
        cli.main()
    monkeypatch.undo()
    err.flush()
    assert end.value.code == 3, err.buffer.getvalue()  # one run failed
    assert "Nothing can be said yet" in out.buffer.getvalue().decode("ascii")
    assert err.buffer.getvalue().decode("ascii").splitlines()[-1].startswith("failed runs: 1")
    for log in (output / "logs").glob("*.log"):
        log.read_text(encoding="utf-8")
    assert json.loads((output / "study.json").read_text())["command"] == ["crisp", "sweep"]
