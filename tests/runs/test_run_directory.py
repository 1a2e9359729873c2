"""A run's folder is never shared and never taken from someone else."""

import json
from dataclasses import replace

import pytest

from crisp_attention.errors import OptionError
from crisp_attention.files import write_json
from crisp_attention.runs.run_directory import RunDirectory
from tests.runs import small


@pytest.fixture
def options(tmp_path):
    return small.options("m", "d", tmp_path / "run")


def claimed(options) -> RunDirectory:
    directory = RunDirectory(options.output)
    directory.claim(options, {"method": "x"})
    return directory


def test_a_new_or_empty_folder_is_taken(options):
    options.output.mkdir(parents=True)
    config = json.loads(claimed(options).config.read_text())
    assert config["options"]["output"] == str(options.output)
    assert config["method"] == "x"
    assert "torch" in config["versions"]


def test_checking_changes_nothing(options):
    RunDirectory(options.output).check(options)
    assert not options.output.exists()


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
def test_a_folder_that_holds_something_else_is_refused_and_kept(options, files, overwrite):
    options.output.mkdir()
    for name, text in files.items():
        (options.output / name).write_text(text)
    with pytest.raises(
        OptionError, match=rf"holds files that are not of a Crisp run \(.*{list(files)[-1]}.*\)"
    ):
        claimed(replace(options, overwrite=overwrite))
    assert {file.name: file.read_text() for file in options.output.iterdir()} == files


def test_a_file_beside_a_run_is_not_deleted_with_it(options):
    claimed(options)
    (options.output / "my notes.txt").write_text("important")
    with pytest.raises(OptionError, match=r"not of a Crisp run \(my notes.txt\)"):
        claimed(replace(options, overwrite=True))
    assert (options.output / "my notes.txt").read_text() == "important"


def test_replacing_a_run_removes_all_of_it(options, tmp_path):
    directory = claimed(options)
    write_json(directory.metrics, {})
    directory.predictions("test").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    directory.model.symlink_to(elsewhere)
    assert directory.complete
    assert not claimed(replace(options, overwrite=True)).complete
    assert {entry.name for entry in options.output.iterdir()} == {"config.json", "figures"}
    assert (elsewhere / "weights").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overwrite": True, "resume": True}, "--overwrite and --resume contradict each other"),
        ({"resume": True}, "--resume: there is no run in"),
    ],
)
def test_flags_that_do_not_fit(options, changes, message):
    with pytest.raises(OptionError, match=message):
        RunDirectory(options.output).check(replace(options, **changes))


def test_a_file_is_no_folder(options):
    options.output.touch()
    with pytest.raises(OptionError, match="is a file; expected a folder"):
        claimed(options)


def test_a_damaged_config_is_said(options):
    claimed(options).config.write_text('{"options": ')
    for changes in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OptionError, match=r"config\.json is damaged .*choose another folder or delete"):
            claimed(replace(options, **changes))


def test_a_json_file_is_there_complete_or_not_at_all(options):
    directory = claimed(options)
    with pytest.raises(TypeError):
        write_json(directory.metrics, {"a": object()})
    assert not directory.metrics.exists()


def test_other_budgets_in_the_same_file_do_not_continue_a_run(options):
    directory = claimed(options)
    with pytest.raises(OptionError, match="--resume: the methods in --budgets None are not those"):
        directory.claim(replace(options, resume=True), {"method": "y"})
    directory.claim(replace(options, resume=True), {"method": "x"})
    assert json.loads(directory.config.read_text())["method"] == "x"


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [({"processes": 2}, 1, "with 2 processes, now there is 1"), ({}, 2, "with 1 process, now there are 2")],
)
def test_other_numbers_of_processes_do_not_continue_a_run(options, then, now, message):
    RunDirectory(options.output).claim(options, {"method": "x", **then})
    with pytest.raises(OptionError, match=message):
        RunDirectory(options.output).check(replace(options, resume=True), now)
