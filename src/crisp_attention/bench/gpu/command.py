"""`python -m crisp_attention.bench gpu`: one part after the other, one file of numbers and one of tables."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crisp_attention.bench.gpu.parts import PARTS, Part, limits
from crisp_attention.bench.gpu.processes import SOURCES, Outcome, run_part
from crisp_attention.files import write_json

OUTPUT = Path("docs/studies/bench/gpu.json")
NEEDED = ("torch", "triton", "numba", "numpy", "transformers", "pytest", "hypothesis")
# what is compared with, or tested, only where it is installed
WANTED = ("accelerate", "datasets", "diffusers", "entmax", "flash_attn", "optuna", "scipy", "x_transformers")
UNUSABLE = 2


def main(words: Sequence[str]) -> int:
    """Run what the words ask for; the exit status: 0, 1 if a part failed, 2 if nothing could be begun."""
    asked = parser().parse_args(words)
    if (problem := missing()) is not None:
        print(f"error: {problem}", file=sys.stderr)
        return UNUSABLE
    parts = [each for each in PARTS if each.name in (asked.parts or _usual(asked.quick))]
    usual = asked.parts is None and not asked.quick
    output = asked.output or (OUTPUT if usual else Path("runs") / OUTPUT.name)
    return run(parts, asked.quick, output, machine(), "cuda")


def run(parts: Sequence[Part], quick: bool, output: Path, found: dict[str, Any], device: str) -> int:
    """Run these parts and write what they gave; 1 if one failed."""
    from crisp_attention.bench.gpu.table import markdown

    began, outcomes = time.monotonic(), list[Outcome]()
    output.parent.mkdir(parents=True, exist_ok=True)
    asked = ["python", "-m", __package__.rpartition(".")[0], *sys.argv[1:]]
    results: dict[str, Any] = {"command": asked, "quick": quick, "machine": found}
    for number, part in enumerate(parts):
        seconds = limits(tuple(parts[number:]), quick, time.monotonic() - began)
        _say(f"[{number + 1} of {len(parts)}] {part.what}, at most {seconds:.0f} s")
        outcomes.append(run_part(part, seconds, quick, device, _indented))
        ended = outcomes[-1]
        _say(f"    {'done' if ended.problem is None else ended.problem} ({ended.seconds:.0f} s)")
        # now, so that an interruption loses one part at most
        write_json(output, {**results, "parts": [each.plain() for each in outcomes]})
    lines = markdown({**results, "parts": [each.plain() for each in outcomes]})
    output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")
    _say(f"\n{output} and {output.with_suffix('.md')}, {time.monotonic() - began:.0f} s")
    if bad := [each for each in outcomes if each.problem is not None]:
        for each in bad:
            _say(f"failed: {each.name}: {each.problem}")
        return 1
    return 0


def missing() -> str | None:
    """What is missing to begin, None if nothing."""
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        return f"needs {', '.join(lacking)}, not installed for {sys.executable}"
    import torch

    if not torch.cuda.is_available():
        built = "for CUDA" if torch.version.cuda else "without CUDA"
        return (
            f"torch {torch.__version__}, built {built}, finds no CUDA device here: this command measures one"
        )
    return None


def machine() -> dict[str, Any]:
    """The GPU, what drives it, and the versions of what matters; libraries that are not installed."""
    import torch

    from crisp_attention.bench.results import versions

    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "memory_bytes": gpu.total_memory,
        "multiprocessors": gpu.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": sys.version.split()[0],
        "commit": _answer(["git", "-C", str(SOURCES), "rev-parse", "HEAD"]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "not installed": [name for name in WANTED if find_spec(name) is None],
    }


def _driver() -> str | None:
    return _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _answer(command: list[str]) -> str | None:
    """The first line that a program prints, None if it cannot."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def _usual(quick: bool) -> list[str]:
    return [each.name for each in PARTS if each.quick or not quick]


def parser() -> argparse.ArgumentParser:
    """Of the command's words."""
    words = argparse.ArgumentParser(
        prog="python -m crisp_attention.bench",
        description="Run the tests and measurements of a GPU, each part in a process of its own; nothing is installed.",
    )
    gpu = words.add_subparsers(required=True, metavar="gpu").add_parser(
        "gpu", help="tests and measurements on a CUDA device, at most nine minutes"
    )
    gpu.add_argument("--quick", action="store_true", help="a minute: little of everything, indicative only")
    gpu.add_argument(
        "--parts",
        nargs="+",
        choices=[each.name for each in PARTS],
        help="; ".join(f"{each.name}: {each.what}" for each in PARTS),
    )
    gpu.add_argument(
        "--output",
        type=Path,
        help=f"file of the numbers; tables go next to it (default: {OUTPUT}; with --quick or --parts in runs)",
    )
    return words


def _indented(line: str) -> None:
    _say(f"    {line}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
