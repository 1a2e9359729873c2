"""A small installation does what it can, and says in one line what brings the rest."""

import sys
import tomllib
from pathlib import Path

import pytest

import crisp_attention
from crisp_attention import __main__, extras
from crisp_attention.runs import treatment

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"pyyaml": "yaml", "pillow": "PIL", "scikit-learn": "sklearn"}


@pytest.mark.parametrize(
    ("extra", "modules"), [("runs", extras.RUNS), ("studies", extras.STUDIES), ("cli", extras.CLI | {"rich"})]
)
def test_the_modules_of_an_extra_are_those_that_the_project_names(extra, modules):
    named = {each.partition(">=")[0] for each in PROJECT["optional-dependencies"][extra]}
    assert {IMPORTED_AS.get(name, name) for name in named if "[" not in name} == modules


@pytest.mark.parametrize(
    ("module", "words"), [("tyro", ["--help"]), ("optuna", ["sweep"]), ("scipy", ["report", "none"])]
)
def test_a_command_without_its_extra_is_one_line(monkeypatch, capsys, tmp_path, module, words):
    rooms = ("cli", "studies")
    for name in [
        each for each in sys.modules if each.startswith(tuple(f"crisp_attention.{room}" for room in rooms))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for room in rooms:  # what is imported in their place is gone after the test, from wherever it is held
        monkeypatch.setattr(crisp_attention, room, None, raising=False)
    monkeypatch.setattr(treatment, "KINDS", dict(treatment.KINDS))
    monkeypatch.setitem(sys.modules, module, None)
    more = ["--model", "m", "--dataset", "d", "--output", str(tmp_path)] if words == ["sweep"] else []
    monkeypatch.setattr(sys, "argv", ["crisp", *words, *more])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    expected = (
        f'error: this command needs {module}, which is not installed: pip install "crisp-attention[all]"\n'
    )
    assert (end.value.code, capsys.readouterr()) == (2, ("", expected))


def test_a_module_of_ours_that_is_missing_is_no_matter_of_extras():
    assert extras.extra_of("crisp_attention.nothing") is None
