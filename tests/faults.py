"""Deliberate faults, each of a kind that the suite must catch: `python -m tests.faults` puts in one after another.

Prints a Markdown table of the faults and of the first test that each of them fails; exits 1 if one is not caught.
`python -m tests.faults dropout seeds` tries those whose name contains one of the words.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "crisp_attention"
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """A line of a source file, what it says instead, and the tests that are run to notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str

    @property
    def path(self) -> Path:
        return SOURCE / self.file

    def put_in(self, source: Path) -> None:
        """Change a copy of the sources."""
        path = source / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.right, self.wrong), encoding="utf-8")


FAULTS = (
    Fault(
        "of equal scores the last key is kept",
        "methods/ranking.py",
        "tied & (tied.cumsum(dim=-1) <= room)",
        "tied & (tied.flip(-1).cumsum(dim=-1).flip(-1) <= room)",
        "tests/methods",
    ),
    Fault(
        "k is taken from the padded length",
        "methods/rules/share.py",
        "self.count_of(visible.sum(dim=-1, keepdim=True))",
        "self.count_of(torch.full_like(visible[..., :1], visible.shape[-1], dtype=torch.long))",
        "tests/methods",
    ),
    Fault(
        "a share is rounded up where its decimals say a whole number",
        "methods/ranking.py",
        "ROUNDING = 1e-9",
        "ROUNDING = 0.0",
        "tests/methods",
    ),
    Fault(
        "N:M groups count padded keys",
        "methods/rules/nofm.py",
        "ranks = key_ranks(visible)",
        "ranks = key_ranks(torch.ones_like(visible))",
        "tests/methods",
    ),
    Fault(
        "blocks are ranked by sums, not by means",
        "methods/layouts/block_topk.py",
        "products = sums / (keys - block * size).clamp(1, size)",
        "products = sums",
        "tests/methods",
    ),
    Fault(
        "random keys are the same in all heads",
        "methods/hashing.py",
        "mix(mix(seed & MASK32) + head[",
        "mix(mix(seed & MASK32) + 0 * head[",
        "tests/methods",
    ),
    Fault(
        "query heads share the wrong key head",
        "methods/rows.py",
        "states[:, :, None]\n        .expand(batch, heads, times, length, width)",
        "states[:, None]\n        .expand(batch, times, heads, length, width)",
        "tests/kernels/test_reference.py",
    ),
    Fault(
        "the bias is capped with the scores",
        "methods/rows.py",
        "scores = self.products\n",
        "scores = self.products if self.bias is None else self.products + self.bias\n",
        "tests/kernels/test_reference.py",
    ),
    Fault(
        "the CPU kernel's dropout does not scale what stays",
        "kernels/cpu/weights.py",
        "return np.float32(1 / (1 - dropout)) if",
        "return np.float32(1) if",
        "tests/kernels/test_every_kernel.py",
    ),
    Fault(
        "the CPU kernel lets a causal query see the key after it",
        "kernels/cpu/spans.py",
        "min(end, i + job.first_query + 1) if job.causal",
        "min(end, i + job.first_query + 2) if job.causal",
        "tests/kernels/test_every_kernel.py",
    ),
    Fault(
        "the CPU kernel's gradient forgets the mean of the softmax",
        "kernels/cpu/weights.py",
        "grad[t] = _slope(rule, weight[t]) * (grad[t] - mean)",
        "grad[t] = _slope(rule, weight[t]) * grad[t]",
        "tests/kernels/test_every_kernel.py",
    ),
    Fault(
        "a layer keeps learned parameters that its next method does not have",
        "models/parameters.py",
        "    take_parameters(module)\n    if wanted:",
        "    if wanted:",
        "tests/models",
    ),
    Fault(
        "a failed change leaves a model half sparse",
        "models/rollback.py",
        "    except BaseException:\n        put_back()\n        raise",
        "    except BaseException:\n        raise",
        "tests/models/test_all_or_nothing.py",
    ),
    Fault(
        "packed sequences see each other",
        "models/transformers/attention.py",
        "return mask & together",
        "return mask",
        "tests/models/test_packing.py",
    ),
    Fault(
        "padded queries count in what is measured",
        "insight/measuring.py",
        "real = (seen.queries & seen.valid.any(dim=-1)).unsqueeze(-1)",
        "real = seen.valid.any(dim=-1).unsqueeze(-1)",
        "tests/insight",
    ),
    Fault(
        "a schedule is one step late",
        "runs/callback.py",
        "steps=state.global_step + 1",
        "steps=state.global_step",
        "tests/runs/test_callback.py",
    ),
    Fault(
        "the best checkpoint is chosen across unequal sparsities",
        "runs/callback.py",
        "state.best_metric = state.best_global_step = state.best_model_checkpoint = None",
        "pass",
        "tests/runs/test_callback.py tests/runs/test_best.py",
    ),
    Fault(
        "the second epoch of one seed is the first of the next",
        "runs/trainer.py",
        "np.random.SeedSequence((self.seed, self.epoch))",
        "np.random.SeedSequence(self.seed + self.epoch)",
        "tests/runs",
    ),
    Fault(
        "a subset of the training examples loses a class",
        "runs/data/splits.py",
        "if classes and len(np.unique(labels[chosen])) < len(needed):",
        "if False:",
        "tests/runs/test_data_columns.py",
    ),
    Fault(
        "Holm's correction multiplies every p by the number of comparisons",
        "studies/statistics/significance.py",
        "np.arange(len(ps), 0, -1)",
        "len(ps)",
        "tests/studies",
    ),
    Fault(
        "the bootstrap resamples examples alone, not seeds",
        "studies/statistics/bootstrap.py",
        "yield of_kinds, random.multinomial(seeds, np.full(seeds, 1 / seeds), size)",
        "yield of_kinds, np.ones((size, seeds))",
        "tests/studies",
    ),
    Fault(
        "a verdict rests on the smaller of two ps",
        "studies/analysis/compare.py",
        "holm([max(each.p_seeds, each.p_bootstrap) for each in family])",
        "holm([min(each.p_seeds, each.p_bootstrap) for each in family])",
        "tests/studies",
    ),
)


def first_failure(fault: Fault) -> str | None:
    """The first test that fails when the fault is in the sources, None if all pass."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(SOURCE, source / SOURCE.name, ignore=shutil.ignore_patterns("__pycache__"))
        fault.put_in(source / SOURCE.name)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *fault.tests.split()]
        environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"{' '.join(command)} exited {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    found = FAILED.search(done.stdout)
    return found[1] if found else None


def main(words: list[str]) -> int:
    """Print the table; the number of faults that are not caught."""
    missed = 0
    print("| fault | file | first test that fails |\n| --- | --- | --- |")
    for fault in FAULTS:
        if not words or any(word in fault.name for word in words):
            failed = first_failure(fault)
            missed += failed is None
            print(f"| {fault.name} | {fault.file} | {failed or '**none**'} |", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
