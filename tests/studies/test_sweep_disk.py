"""A disk that is full or read-only."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import crisp_attention as crisp
from crisp_attention.errors import OptionError
from tests.studies.sweeping import (
    database,
    each_once,
    meanwhile,
    metrics_files,
    small_plan,
    states,
    swept,
)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        reason = f"no small disk can be mounted: {mounted.stderr.strip()}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Write until nothing more can be written."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.slow
def test_a_full_disk_ends_a_study_that_can_be_continued(small_bert, reviews, disk):
    plan, output, ballast = small_plan(small_bert, reviews, 2, epochs=4), disk / "study", disk / "ballast"

    stopped = pytest.raises(OptionError, match=r"the study is intact: .*run the same command again")
    with stopped, meanwhile(lambda: metrics_files(output), lambda _: fill(ballast)):
        swept(plan, output)
    with pytest.raises(OptionError, match=r"the study is intact: .*run the same command again"):
        swept(plan, output)  # it is still full
    done = metrics_files(output)
    assert 1 <= len(done) < 4
    ballast.unlink()
    swept(plan, output)
    assert metrics_files(output).items() >= done.items()
    each_once(states("study", database(output)), 4)


def test_a_read_only_disk_is_refused_at_once(small_bert, reviews, disk):
    (disk / "there").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for output in (disk / "there", disk / "new" / "study"):
        with pytest.raises(OptionError, match=rf"^output {output}: {disk}\S* is not writable"):
            crisp.sweep(small_bert, reviews, [crisp.TopK()], output=output, verbose=False)
