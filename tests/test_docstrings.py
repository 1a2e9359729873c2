"""Every public name says what it is, with an example that runs here: offline, in about a second."""

import doctest
import importlib
import inspect
import shutil
from pathlib import Path

import pytest

import crisp_attention as crisp
from tests.runs import small

pytestmark = pytest.mark.usefixtures("own_cache")

SAVED = Path(__file__).parent / "saved"
ROOMS = ("testing", "runs.task")
TRAINS_FOR_LONG = {"sweep"}  # its example is shown and not run: every run is a process of its own
PUBLIC = {name: getattr(crisp, name) for name in crisp.__all__} | {
    f"{room}.{name}": getattr(module, name)
    for room in ROOMS
    for module in [importlib.import_module(f"crisp_attention.{room}")]
    for name in module.__all__
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """What the examples find in the folder where they run: a model, data, a run and a study."""
    folder = tmp_path_factory.mktemp("examples")
    small.bert(folder / "bert-tiny")
    small.reviews(folder / "reviews")
    shutil.copytree(SAVED / "runs" / "finished", folder / "runs" / "first")
    shutil.copytree(SAVED / "study", folder / "runs" / "study")
    return folder


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_public_name_runs(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    thing = PUBLIC[name]
    module = importlib.import_module(thing.__module__)
    docstring = inspect.cleandoc((vars(thing)["__doc__"] if inspect.isclass(thing) else thing.__doc__) or "")
    example = doctest.DocTestParser().get_doctest(docstring, dict(vars(module)), name, None, None)
    assert example.examples, f"{name} has no example"
    assert "Examples\n--------" in docstring
    if inspect.isfunction(thing) and inspect.signature(thing).parameters:
        assert "Parameters\n----------" in docstring
    assert name in TRAINS_FOR_LONG or not any(doctest.SKIP in each.options for each in example.examples)
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False).run(example)
    assert failed == 0, capsys.readouterr().out
