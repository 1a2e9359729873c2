"""The section of docs/performance.md about GPUs, from what `make gpu` left, or without numbers until it has been run.

python -m benchmarks.gpu_bench_table            # prints it
python -m benchmarks.gpu_bench_table --write    # puts it into the page
"""

import json
import sys
from pathlib import Path

from crisp_attention.bench.gpu.command import OUTPUT
from crisp_attention.bench.gpu.table import markdown

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "performance.md", ROOT / OUTPUT
TITLE = "## On a GPU"
INTRODUCTION = """
```
make gpu PYTHON=python3                          # at most nine minutes, on a machine with a CUDA device
python -m benchmarks.gpu_bench_table --write     # this section, from its numbers
```

The first installs nothing and needs no network: torch, Triton, numba, numpy, transformers, wrapt, pytest and
hypothesis have to be there, and what else is missing is named. It is `python -m crisp_attention.bench gpu` from the
source tree: `--quick` takes a minute, `--parts` chooses. Each part runs in a process of its own with a limit of time,
so that one that fails does not stop the others; the command ends with status 1 then, and says which.

Ratios are to the **fastest** of torch's dense backends, which are asked for by name, in the same rounds; times are of
CUDA events. Before anything is timed it has to agree with our reference, computed in float32 from the same numbers: the
difference is at most 0.1 % of the norm in float32, 2 % in bfloat16; whole models are compared with two layers, in
float32. One example; attention has 16 heads of width 128 unless a table says otherwise, and 80 % sparsity where a
method can be asked for one. The bars are in the table under Results. Models have random weights.
"""


def section() -> str:
    """The section, from its title on."""
    results = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else None
    return "\n".join([TITLE, INTRODUCTION, *markdown(results)]) + "\n"


def written(page: str) -> str:
    """A page with the section in the place of the one that it has, or at its end."""
    before, title, rest = page.partition(f"{TITLE}\n")
    _, following, after = rest.partition("\n## ")
    if not title:
        return f"{page.rstrip()}\n\n{section()}"
    return before + section() + following + after


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(section())
