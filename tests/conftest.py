"""Real data and models for the tests; where they are missing a test skips, except in CI, where it fails."""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# a folder that is not there: no test takes kernels by what somebody has measured on this machine
os.environ["CRISP_CACHE"] = str(Path(__file__).parent / "no-cache")

import pytest

from tests.browser import Browser, Tab, program_or_skip

# What takes seconds to import is imported in functions: pytest-xdist reads this file once more in a process
# that runs no test, before it starts those that do.

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection() -> None:
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton, as transformers' models do


def pytest_collection_finish() -> None:
    """What was imported stays: a Trainer collects garbage as it begins, and need not look through all of it."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # nanobind lists whatever is left at the end


@pytest.fixture(scope="session", autouse=True)
def drawing() -> Iterator[dict[str, Callable]]:
    """Drawing a run's two pictures takes longer than the run; a test that looks at them asks for `pictures`."""
    try:
        from crisp_attention.runs import evaluation
    except ModuleNotFoundError:  # a machine with a GPU need not have what runs need, to test kernels
        yield {}
        return
    originals = {name: getattr(evaluation, name) for name in ("draw_learning", "draw_heads")}
    with pytest.MonkeyPatch.context() as patch:
        for name in originals:
            patch.setattr(evaluation, name, lambda *given: given[-1].touch())
        yield originals


@pytest.fixture
def pictures(drawing, monkeypatch) -> None:
    """Runs draw their pictures in this test."""
    from crisp_attention.runs import evaluation

    for name, function in drawing.items():
        monkeypatch.setattr(evaluation, name, function)


def folder_or_skip(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        reason = f"no folder {folder}; set {variable} to where it is"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return folder_or_skip("CRISP_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def models_folder() -> Path:
    return folder_or_skip("CRISP_MODELS", SHARED / "models")


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    """A folder with a small classifier that can be fine-tuned on `reviews`."""
    from tests.runs import small

    return small.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> str:
    from tests.runs import small

    return small.reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory) -> Iterator[None]:
    """What the library `datasets` keeps on disk is gone after the tests."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture
def crisp_command(monkeypatch, capsys):
    """Runs the command `crisp` in this process: exit status, standard output, standard error."""
    from crisp_attention.cli import main as cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["crisp", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    opened = Browser(program_or_skip())
    yield opened
    opened.close()


@pytest.fixture
def tab(browser) -> Iterator[Tab]:
    """A page of a real browser; the test fails if a page that it opened was not content."""
    opened = Tab(browser)
    yield opened
    opened.close()
    assert opened.errors == []


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
