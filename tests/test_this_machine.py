"""The folder for what programs can do without, on every system."""

import sys
from pathlib import Path

import pytest

from crisp_attention.this_machine import cache_folder, processor


@pytest.fixture
def user(monkeypatch, tmp_path) -> Path:
    """The home of a user who has set no variable."""
    for name in ("CRISP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("system", "folder"),
    [
        ("linux", ".cache/crisp-attention"),
        ("darwin", "Library/Caches/crisp-attention"),
        ("win32", "AppData/Local/crisp-attention"),
    ],
)
def test_it_is_among_the_users_caches(monkeypatch, user, system, folder):
    monkeypatch.setattr(sys, "platform", system)
    assert cache_folder() == user / folder
    assert list(user.iterdir()) == []


@pytest.mark.parametrize(("system", "variable"), [("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")])
def test_the_systems_variable_and_ours_name_others(monkeypatch, user, system, variable):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv(variable, str(user / "there"))
    assert cache_folder() == user / "there" / "crisp-attention"
    monkeypatch.setenv("CRISP_CACHE", str(user / "here"))
    assert cache_folder() == user / "here"


def test_the_processor_has_a_name():
    assert processor().strip()
