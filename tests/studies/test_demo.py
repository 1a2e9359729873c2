"""The demonstration, as a person runs it."""

import subprocess
import sys

import pandas as pd
import pytest

from crisp_attention.cli.demo import demo_study
from crisp_attention.cli.options import DemoOptions
from crisp_attention.cli.sweep import plan_of


def test_dense_is_trained_with_a_recipe_of_its_own():
    plan, _ = plan_of(demo_study(DemoOptions(epochs=40, sparsity=("0.5,0.8",))))
    found = {each.label: (each.recipe.learning_rate, each.recipe.epochs) for each in plan.configurations}
    assert found == {
        "dense": (3e-4, 120),
        "topk 50 %": (3e-4, 40),
        "topk 80 %": (3e-4, 40),
        "random 80 %": (3e-4, 40),
    }


@pytest.mark.slow
def test_the_command_ends_with_the_report(tmp_path):
    output = tmp_path / "demo"
    command = [sys.executable, "-m", "crisp_attention", "demo", "--seeds", "1", "--epochs", "10"]
    command += ["--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(output / "report" / "report.html") in done.stdout.replace("\n", "")
    table = pd.read_csv(output / "report" / "table.csv").set_index("method")
    assert list(table["epochs"]) == [30, 10, 10]
    assert table.loc["topk:sparsity=0.8", "accuracy"] > 0.7
    assert table.loc["topk:sparsity=0.8", "accuracy"] > table.loc["random:sparsity=0.8", "accuracy"] + 0.1
