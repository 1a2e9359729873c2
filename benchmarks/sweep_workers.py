"""How much sooner two workers finish a study of small runs than one: the ratio of their times.

    python benchmarks/sweep_workers.py

Sweeps the handwritten digits twice, 12 runs each, with --workers 1 and with --workers 2, each time with
all cores shared out among the workers; OMP_NUM_THREADS must not be set. The runs are small, four images a
step: of larger steps one worker shares the work among its threads, and gains less from a second worker.
What a sweep takes before its first run and for its report is part of both times.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "sweep --model builtin:vit --dataset builtin:digits --method topk --sparsity 0.5 --seeds 6 --epochs 8"
RECIPE = "--batch-size 4 --learning-rate 1e-3 --training use_cpu=true"


def seconds(workers: int) -> float:
    """The time of a whole sweep with so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", str(Path(folder) / "study"), "--workers", str(workers)]
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "crisp_attention", *f"{WORDS} {RECIPE}".split(), *output], check=True
        )
        return time.monotonic() - began


def main() -> None:
    one, two = seconds(1), seconds(2)
    print(f"1 worker: {one:.0f} s; 2 workers: {two:.0f} s; ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
