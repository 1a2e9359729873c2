"""The part of the tests: those marked `cuda`, shared among processes, a line of JSON for each result."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crisp_attention.bench.gpu.parts import Emit, Setting
from crisp_attention.bench.gpu.processes import SOURCES, whole_lines

ROOT = SOURCES.parent
MARK = "cuda"
MOST, SAMPLE = 8, 40  # processes; in a quick run one test of so many
PYTEST_ENDS = (0, 1, 5)  # all passed, some failed, there were none
RESERVE = 3.0  # seconds to write down what was found
INTO, SHARE = (
    "CRISP_TESTS_INTO",
    "CRISP_TESTS_SHARE",
)  # what the plugin is told: a file, and which of how many shares
COMMAND = (
    *(sys.executable, "-m", "pytest", "-q", "--maxfail=50", "--no-header", "--tb=short", "-m", MARK),
    *("-p", f"{__package__}.reporting", "-p", "no:cacheprovider", "-p", "no:xdist"),
    # warnings of versions of libraries that these tests are not run with elsewhere
    *("-W", "default", "--disable-warnings"),
)


def run(setting: Setting, emit: Emit, where: Path = ROOT / "tests" / "kernels") -> None:
    """Run the tests, in as many processes as there are cores for, and give one row of all results."""
    if not where.is_dir():
        emit(
            {
                "tests": {},
                "absent": [{"name": "tests", "reason": f"no folder {where}: this is no source tree"}],
            }
        )
        return
    count = max(1, min(MOST, (os.cpu_count() or 1) // 2))
    shares = count * (SAMPLE if setting.quick else 1)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jsonl" for number in range(count)]
        processes = [_started(where, each, f"{number}/{shares}") for number, each in enumerate(files)]
        while any(each.poll() is None for each in processes) and setting.left > RESERVE:
            time.sleep(0.2)
        late = [each.poll() is None for each in processes]
        for each in processes:
            each.kill()
        statuses = [each.wait() for each in processes]
        found = _counted([line for each in files for line in whole_lines(each)])
        for file, status, ended in zip(files, statuses, late, strict=True):
            if not ended and status not in PYTEST_ENDS:
                last = (file.with_suffix(".log").read_text(errors="replace").split("\n") or [""])[-2:]
                found["failed"].append(
                    {"name": "pytest", "reason": f"status {status}: {' '.join(last).strip()}"}
                )
    counts = found["tests"]
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items()), flush=True)
    if counts["not finished"] and not setting.quick:
        found["absent"].append(
            {
                "name": "tests",
                "reason": f"{counts['not finished']} of {counts['collected']} did not finish in time",
            }
        )
    emit(found)


def _started(where: Path, into: Path, share: str) -> subprocess.Popen[bytes]:
    into.touch()
    own = {INTO: str(into), SHARE: share, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"}
    with into.with_suffix(".log").open("wb") as output:
        return subprocess.Popen(
            [*COMMAND, str(where)],
            cwd=ROOT,
            env={**os.environ, **own},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _counted(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A row: how many of the tests ended how, and those that failed, or ended their process, with reasons."""
    results = {each["test"]: each for each in lines if "outcome" in each}
    began = {each["test"] for each in lines if "began" in each}
    outcomes = Counter(each["outcome"] for each in results.values())
    collected = sum(each.get("collected", 0) for each in lines)
    counts = {"collected": collected, **{each: outcomes[each] for each in ("passed", "failed", "skipped")}}
    counts["not finished"] = collected - len(results)
    failed = [
        {"name": each["test"], "reason": each["reason"]}
        for each in results.values()
        if each["outcome"] == "failed"
    ]
    return {"tests": counts, "unfinished": sorted(began - set(results)), "failed": failed, "absent": []}
