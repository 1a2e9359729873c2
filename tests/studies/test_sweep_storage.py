"""Which storages there are, and what is said of those that do not answer."""

import re

import pytest

from crisp_attention.errors import OptionError
from crisp_attention.studies.sweep.storage import Storage


@pytest.mark.parametrize("name", ["with space", "50%", "a%20b", "what?", "a{b}", "a#b", "ü&x=1"])
def test_a_study_can_be_in_a_folder_of_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    Storage(None, tmp_path / name)
    assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["study.db", "study.db.lock"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql:/me:secret@host/db", "expected a URL such as sqlite:///study.db or postgresql://"),
        ("postgresql://me:secret@host:port/db", "expected a URL such as sqlite:///study.db or postgresql://"),
        ("redis://me:secret@host", "expected SQLite, PostgreSQL or MySQL, got redis"),
        ("sqlite://", "expected a SQLite file, such as sqlite:///study.db, got one in memory"),
        ("sqlite:////proc/nowhere/study.db", "sqlite:////proc/nowhere/study.db cannot be opened: "),
        ("postgresql+psycopg2://me:secret@host/db", "me:***@host/db needs the package psycopg2"),
        ("postgresql://me:secret@localhost:1/db", "me:***@localhost:1/db cannot be opened: .* port 1 failed"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_without_its_password(tmp_path, url, message):
    with pytest.raises(OptionError, match=re.escape(message).replace(r"\.\*", ".*")) as refused:
        Storage(url, tmp_path)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
