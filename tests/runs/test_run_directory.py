"""A run's folder is never shared and never taken from someone else."""

import json
from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict

from crisp_attention import Budgets, TopK
from crisp_attention.errors import OptionError
from crisp_attention.files import write_json
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.runs.spec import Data, Recipe, RunSpec

SPEC = RunSpec(model="m", data=Data(source="d"))


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def claimed(directory):
    directory.claim(SPEC, {"notes": ["x"]})
    return directory


def test_checking_changes_nothing_and_claiming_records_the_run(directory):
    directory.check(SPEC)
    assert not directory.path.exists()
    directory.path.mkdir()
    directory.claim(SPEC, {"notes": ["x"]})
    config = json.loads(directory.config.read_text())
    assert config["options"] == SPEC.to_dict()
    assert config["notes"] == ["x"]
    assert "torch" in config["versions"]
    assert directory.spec() == SPEC


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "years of work"},
        {"config.json": '{"model_type": "bert"}', "model.safetensors": "weights"},
        {"config.json": '{"model_type": "bert"}'},
        {"config.json": "[]"},
        {"figures": "no run without a config.json"},
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_kept(directory, files, overwrite):
    directory.path.mkdir()
    for name, text in files.items():
        (directory.path / name).write_text(text)
    with pytest.raises(
        OptionError, match=rf"holds files that do not belong to a Crisp run \(.*{list(files)[-1]}.*\)"
    ):
        directory.claim(SPEC, {}, overwrite=overwrite)
    assert {file.name: file.read_text() for file in directory.path.iterdir()} == files


def test_a_file_next_to_a_run_is_not_deleted_with_it(claimed):
    (claimed.path / "my notes.txt").write_text("important")
    with pytest.raises(OptionError, match=r"not belong to a Crisp run \(my notes.txt\)"):
        claimed.claim(SPEC, {}, overwrite=True)
    assert (claimed.path / "my notes.txt").read_text() == "important"


def test_replacing_a_run_removes_all_of_it(claimed, tmp_path):
    write_json(claimed.metrics, {})
    claimed.predictions("test").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    claimed.model.symlink_to(elsewhere)
    assert claimed.complete
    claimed.claim(SPEC, {}, overwrite=True)
    assert not claimed.complete
    assert {entry.name for entry in claimed.path.iterdir()} == {"config.json", "figures"}
    assert (elsewhere / "weights").exists()


def test_what_does_not_fit_together_is_refused(directory):
    with pytest.raises(OptionError, match="resume cannot be combined with overwrite=True"):
        directory.check(SPEC, overwrite=True, resume=True)
    with pytest.raises(OptionError, match="resume: there is no run in"):
        directory.check(SPEC, resume=True)
    directory.path.touch()
    with pytest.raises(OptionError, match="is a file; expected a folder"):
        directory.claim(SPEC, {})


def test_a_damaged_config_is_said(claimed):
    claimed.config.write_text('{"options": ')
    for changes in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OptionError, match=r"config\.json is damaged .*choose another folder or delete"):
            claimed.claim(SPEC, {}, **changes)
    claimed.config.write_text('{"options": {"model": "m"}}')
    with pytest.raises(OptionError, match=r"config\.json is damaged \(KeyError: 'data'\)"):
        claimed.check(SPEC, resume=True)


def test_a_json_file_is_there_complete_or_not_at_all(claimed):
    with pytest.raises(TypeError):
        write_json(claimed.metrics, {"a": object()})
    assert not claimed.metrics.exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, seed=1), "other options: seed was 0, is 1"),
        (replace(SPEC, recipe=Recipe(epochs=1.0)), "other options: epochs was 3.0, is 1.0"),
        (
            replace(SPEC, method=Budgets({"0": TopK(0.5)})),
            "method was topk:sparsity=0.8, is budgets of 1 layer",
        ),
    ],
)
def test_another_run_does_not_continue_this_one(claimed, spec, message):
    before = claimed.config.read_text()
    with pytest.raises(OptionError, match=message):
        claimed.claim(spec, {}, resume=True)
    assert claimed.config.read_text() == before


def test_where_a_run_is_logged_may_change(claimed):
    claimed.claim(replace(SPEC, recipe=Recipe(report_to="wandb")), {}, resume=True)
    assert claimed.spec().recipe.report_to == "wandb"


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({"processes": 2}, 1, "with 2 processes, but now there is 1"),
        ({}, 2, "with 1 process, but now there are 2"),
    ],
)
def test_other_numbers_of_processes_do_not_continue_a_run(directory, then, now, message):
    directory.claim(SPEC, then)
    with pytest.raises(OptionError, match=message):
        directory.check(SPEC, resume=True, processes=now)


def test_data_in_memory_are_kept_once_and_other_data_do_not_continue_the_run(directory):
    held = DatasetDict({"train": Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})})
    spec = replace(SPEC, data=Data(source=str(directory.data)))
    directory.claim(spec, {}, held=held)
    kept = {file: file.stat().st_mtime_ns for file in directory.data.rglob("*")}
    directory.claim(spec, {}, resume=True, held=held)
    assert {file: file.stat().st_mtime_ns for file in directory.data.rglob("*")} == kept
    other = DatasetDict({"train": held["train"].select([1, 0])})
    with pytest.raises(OptionError, match="was started with other data"):
        directory.check(spec, resume=True, held=other)
