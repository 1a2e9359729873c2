"""Running a part in a process of its own, which may fail, hang or die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO, Any

import crisp_attention
from crisp_attention.bench.gpu.parts import Part

SOURCES = Path(crisp_attention.__file__).parents[1]
GRACE = 5.0  # seconds beyond its time in which a part may come to its end by itself
SHOWN = 300  # characters of a reason


@dataclass(frozen=True)
class Outcome:
    """How a part ended; `problem`: what went wrong, None if all went well; `rows`: what it found until then."""

    name: str
    problem: str | None
    seconds: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def run_part(part: Part, seconds: float, quick: bool, device: str, told: Callable[[str], None]) -> Outcome:
    """Run a part for so long at most; whatever it prints is told, line by line."""
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        into = Path(folder) / "rows"
        into.touch()
        task = {"run": part.run, "seconds": seconds, "quick": quick, "device": device, "into": str(into)}
        problem = _ended([sys.executable, "-m", f"{__package__}.child", json.dumps(task)], seconds, told)
        rows = whole_lines(into)
    bad = [each["name"] for row in rows for each in row.get("failed", [])]
    if problem is None and bad:
        problem = f"{len(bad)} failed: {', '.join(dict.fromkeys(bad))}"
    return Outcome(part.name, problem and problem[:SHOWN], round(time.monotonic() - began, 1), rows)


def environment() -> dict[str, str]:
    """That of the parts: the source tree can be imported, and nothing asks the network."""
    paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    found = {**os.environ, **own, "HF_HUB_OFFLINE": "1"}
    found.pop("TRITON_INTERPRET", None)
    return found


def _ended(command: list[str], seconds: float, told: Callable[[str], None]) -> str | None:
    """What went wrong with a process, None if nothing."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(),
        start_new_session=True,  # so that those that it starts can be ended with it
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=1)
    reader = Thread(target=_tell, args=(process.stdout, last, told), daemon=True)
    reader.start()
    try:
        status = process.wait(max(seconds, 0) + GRACE)
    except subprocess.TimeoutExpired:
        return f"took longer than its {seconds:.0f} seconds and was ended"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(GRACE)
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"ended with status {status}: {''.join(last) or 'no message'}" if status else None


def _tell(output: IO[str], last: deque[str], told: Callable[[str], None]) -> None:
    for line in output:
        if line.strip():
            last.append(line.strip())
            told(line.rstrip())


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """What was written of it: of a process that died, the last line may be cut off."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found
