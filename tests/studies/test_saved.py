"""A study that version 0.1.0 left unfinished is read, reported, continued and grown."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import crisp_attention as crisp
from crisp_attention.cli import main as cli
from crisp_attention.cli.main import parse
from crisp_attention.cli.sweep import plan_of
from crisp_attention.studies.folder import STUDY, StudyFolder
from tests.runs import small
from tests.studies.reports import exact
from tests.studies.sweeping import database, metrics_files, states

SAVED = Path(__file__).parents[1] / "saved"
COMMAND = (
    "crisp sweep --model model --dataset data --output study --method topk,random --sparsity 0.5 --seeds 3 "
    "--epochs 10 --batch-size 8 --learning-rate 1e-2 --recipe dense:epochs=12 --training use_cpu=true"
)


def test_its_table_is_the_one_that_was_written_then(tmp_path):
    study = crisp.Study.open(SAVED / "study")
    study.table().to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(exact(tmp_path / "table.csv"), exact(SAVED / "study-table.csv"))
    assert [(each.label, seed) for each, seed in study.folder.missing()] == [("random 50 %", 2)]
    assert str(study.verdicts()[0]) == "topk 50 % and dense: 8 of 9 runs are finished: no verdict yet"


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_the_same_command_continues_it_and_other_values_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAVED / "study", "study")
    Path("model").mkdir()
    small.bert(Path("model"))
    small.reviews(Path("data"))
    before, record = metrics_files(Path("study")), Path("study", STUDY).read_bytes()
    monkeypatch.setattr(sys, "argv", COMMAND.split())
    cli.main()
    done = metrics_files(Path("study"))
    assert done.items() > before.items()
    assert [file.parent.name for file in done.keys() - before.keys()] == ["random-sparsity-0.5-seed-2"]
    assert Path("study", STUDY).read_bytes() == record  # nothing was added
    assert states("study", database(Path("study")))["random-sparsity-0.5-seed-2"][-1] == "COMPLETE"

    other = COMMAND.replace("--epochs 10", "--epochs 11").split()
    monkeypatch.setattr(sys, "argv", other)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "topk 50 %: --epochs was 10.0, is 11.0" in " ".join(capsys.readouterr().err.split())


def test_it_is_continued_by_its_plan_and_grows(tmp_path):
    study = StudyFolder.read(shutil.copytree(SAVED / "study", tmp_path / "study"))
    plan, _ = plan_of(parse(COMMAND.split()[1:]))
    assert study.grow(plan, ("crisp", "sweep")) == study  # nothing was added
    grown = study.grow(replace(study.plan, seeds=(0, 1, 2, 3)), ("crisp", "sweep"))
    assert StudyFolder.read(study.path) == grown
    assert grown.additions[0].seeds == (3,)
    assert [each for each in grown.missing() if each[1] == 3] == [(each, 3) for each in study.configurations]
