"""A plugin of pytest: runs a share of the collected tests, and writes a line of JSON as each begins and ends."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crisp_attention.bench.gpu.tests import INTO, SHARE

SHOWN = 300  # characters of a reason


@pytest.hookimpl(trylast=True)  # after the choice by mark
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keep every n-th test, and say how many there are."""
    first, _, every = os.environ[SHARE].partition("/")
    items[:] = items[int(first) :: int(every)]
    _write({"collected": len(items)})


def pytest_runtest_logstart(nodeid: str) -> None:
    """A test begins, which may not come to an end."""
    _write({"test": nodeid, "began": True})


def pytest_runtest_logreport(report: Any) -> None:
    """A test has ended, or failed before or after itself."""
    if report.when == "call" or report.outcome != "passed":
        lines = [line for line in str(report.longrepr or "").splitlines() if line.startswith("E ")]
        reason = lines[0][1:].strip() if lines else str(report.longrepr or "")
        _write({"test": report.nodeid, "outcome": report.outcome, "reason": reason[:SHOWN]})


def _write(found: dict[str, Any]) -> None:
    with Path(os.environ[INTO]).open("a", encoding="utf-8") as lines:
        print(json.dumps(found), file=lines)
