"""The demonstration, as a person runs it."""

import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console

from crisp_attention.evidence.demo import SETTING, table
from crisp_attention.evidence.digits import CONFIGURATIONS, digits
from crisp_attention.evidence.figures import draw_accuracy

RUNS = [
    ("dense", 0.0, 120, [0.90, 0.92]),
    ("topk", 0.8, 40, [0.91, 0.93]),
    ("random", 0.8, 40, [0.60, 0.64]),
]
RESULTS = pd.DataFrame(
    [(m, s, e, seed, a) for m, s, e, found in RUNS for seed, a in enumerate(found)],
    columns=["method", "sparsity", "epochs", "seed", "accuracy"],
)


def test_the_table_pairs_differences_by_seed():
    console = Console(width=120, record=True, quiet=True)
    console.quiet = False
    with console.capture() as shown:
        console.print(table(RESULTS))
    lines = shown.get()
    assert "91.0 ± 12.7 %" in lines  # t(1 degree of freedom) = 12.7 standard errors of 1 point
    assert "+1.0 (+1.0 to +1.0)" in lines  # both seeds gain exactly one point
    assert "-29.0 (-41.7 to -16.3)" in lines


def test_the_picture_is_drawn(tmp_path):
    draw_accuracy(RESULTS, SETTING, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_it_trains_on_300_digits_and_tests_on_the_other_1497():
    splits = digits().splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 300, "test": 1497}
    assert [c.name for c in CONFIGURATIONS] == ["dense", "topk", "topk", "topk", "random"]


@pytest.mark.slow
def test_the_command_ends_with_the_table_and_its_files(tmp_path):
    command = [sys.executable, "-m", "crisp_attention", "demo", "--seeds", "2", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "difference to dense" in done.stdout
    assert str(tmp_path / "accuracy.png") in done.stdout.replace("\n", "")
    results = pd.read_csv(tmp_path / "results.csv")
    assert len(results) == 2 * len(CONFIGURATIONS)
    mean = results.groupby(["method", "sparsity"])["accuracy"].mean()
    assert mean["topk", 0.8] > 0.85
    assert mean["topk", 0.8] > mean["random", 0.8] + 0.1
