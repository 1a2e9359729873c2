"""The demonstration: dense, top-k and random attention side by side, in minutes."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import pandas as pd
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from crisp_attention.evidence.digits import CONFIGURATIONS, accuracy, digits, start_worker
from crisp_attention.evidence.figures import draw_accuracy
from crisp_attention.evidence.options import DemoOptions
from crisp_attention.evidence.statistics import mean_interval, paired_difference
from crisp_attention.training.options import OptionError

# glibc gives every large temporary back to the system at once; keeping them makes steps shorter
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
SETTING = "Handwritten digits, Vision Transformer trained on 300 images"


def run_demo(options: DemoOptions) -> pd.DataFrame:
    """Run every configuration with every seed; write results.csv and accuracy.png; print the table.

    Returns one row per run: method, sparsity, epochs, seed, accuracy on the 1,497 test images.
    """
    if options.seeds < 2 or options.workers < 1:
        raise OptionError(
            f"--seeds must be at least 2 and --workers at least 1, got {options.seeds} and {options.workers}"
        )
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = _run_all(options, console)
    results.to_csv(options.output / "results.csv", index=False)
    draw_accuracy(results, SETTING, options.output / "accuracy.png")
    console.print(table(results))
    for what, name in (("every run", "results.csv"), ("picture", "accuracy.png")):
        console.print(f"{what}: {options.output / name}", highlight=False)
    return results


def _run_all(options: DemoOptions, console: Console) -> pd.DataFrame:
    jobs = [(number, seed) for seed in range(options.seeds) for number in range(len(CONFIGURATIONS))]
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    rows = []
    pool = ProcessPoolExecutor(options.workers, mp_context=get_context("spawn"), initializer=start_worker)
    with Progress(*columns, console=console) as progress, pool:
        bar = progress.add_task("training", total=len(jobs))
        futures = {pool.submit(_job, *job): job for job in jobs}
        for future in as_completed(futures):
            rows.append((*futures[future], future.result()))
            progress.advance(bar)
    table = pd.DataFrame(sorted(rows), columns=["number", "seed", "accuracy"])
    configurations = [CONFIGURATIONS[number] for number in table.pop("number")]
    table.insert(0, "method", [each.name for each in configurations])
    table.insert(1, "sparsity", [each.sparsity for each in configurations])
    table.insert(2, "epochs", [each.epochs for each in configurations])
    return table


def table(results: pd.DataFrame) -> Table:
    """Test accuracy per configuration and its difference to dense, with 95 % t-intervals over seeds."""
    runs = {
        key: group.sort_values("seed")["accuracy"].mul(100).tolist()
        for key, group in results.groupby(["method", "sparsity", "epochs"], sort=False)
    }
    baseline = next(values for (method, *_), values in runs.items() if method == "dense")
    rich = Table(title=f"{SETTING}\n({len(baseline)} seeds, ± and brackets: 95 % intervals)")
    for heading in ("attention", "sparsity", "epochs", "test accuracy", "difference to dense"):
        rich.add_column(heading, justify="left" if heading == "attention" else "right")
    for (method, sparsity, epochs), values in runs.items():
        mean, gap = mean_interval(values), paired_difference(values, baseline)
        difference = f"{gap.mean:+.1f} ({gap.low:+.1f} to {gap.high:+.1f})" if values is not baseline else ""
        cells = (f"{sparsity:.0%}", str(epochs), f"{mean.mean:.1f} ± {mean.half_width:.1f} %", difference)
        rich.add_row(str(method), *cells)
    return rich


def _job(number: int, seed: int) -> float:
    return accuracy(CONFIGURATIONS[number], seed, digits())
