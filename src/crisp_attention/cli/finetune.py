"""`crisp finetune`: from flags to a run, and its printed summary."""

import os
import shlex
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from crisp_attention.cli.options import FinetuneOptions, run_values
from crisp_attention.cli.pruning_options import PruneOptions
from crisp_attention.runs.finetune import Run, carry_out
from crisp_attention.runs.flat import spec_of
from crisp_attention.runs.spec import RunSpec
from crisp_attention.runs.task import Target
from crisp_attention.runs.terminal import is_main, table_console


def run_finetune(options: FinetuneOptions, console: Console) -> None:
    """Run it and print the results; raises as `carry_out` does."""
    run = run_as_asked(spec_of(run_values(options)), options, console)
    print_summary(run, _attention(run))


def run_as_asked(spec: RunSpec, options: FinetuneOptions | PruneOptions, console: Console) -> Run:
    """Do a run in the folder and in the way that the options say; raises as `carry_out` does."""
    from accelerate import PartialState

    run = carry_out(
        spec,
        options.output,
        console,
        resume=options.resume,
        overwrite=options.overwrite,
        keep_model=not options.discard_model,
        command=["crisp", *sys.argv[1:]],
    )
    PartialState().destroy_process_group()
    return run


def print_summary(run: Run, sparsity: str) -> None:
    """Print the scores, what it cost, and a line on its sparsity; of several processes in the main one alone."""
    output = table_console()
    output.quiet = not is_main()
    output.print(_table(run.metrics, run.target))
    diverged = [
        split for split in ("validation", "test") if run.metrics.get(split, {"loss": 0})["loss"] is None
    ]
    for line in (
        *([f"the run diverged: logits on {' and '.join(diverged)} are not finite"] if diverged else []),
        sparsity,
        f"{run.metrics['steps']:,} steps in {run.metrics['train_seconds']:.0f} s on "
        f"{run.metrics['device']}, {run.metrics['seconds_per_step']:.3f} s a step; "
        f"peak memory {run.metrics['peak_memory_bytes'] / 2**30:.1f} GiB",
        f"everything is in {run.directory}",
    ):
        output.print(line, highlight=False, soft_wrap=True)


def to_continue(options: FinetuneOptions | PruneOptions) -> str:
    """The command that continues an interrupted run; empty if it had not begun."""
    if not (options.output / "config.json").is_file():
        return ""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    processes = os.environ.get("WORLD_SIZE", "1")
    start = "crisp" if processes == "1" else f"torchrun --nproc-per-node {processes} -m crisp_attention"
    return f"; to continue: {start} {shlex.join(words)} --resume"


def _table(metrics: dict[str, Any], target: Target) -> Table:
    table = Table("split")
    for heading in ("examples", *(each.title for each in target.metrics), "loss"):
        table.add_column(heading, justify="right")
    for split in ("train", "validation", "test"):
        if split in metrics:
            seen = metrics[split]
            loss = "not finite" if seen["loss"] is None else f"{seen['loss']:.4f}"
            # a run of an older version has accuracy alone
            scores = [each.shown(seen[each.name]) if each.name in seen else "" for each in target.metrics]
            table.add_row(split, f"{seen['examples']:,}", *scores, loss)
    return table


def _attention(run: Run) -> str:
    sparsity, mass = run.metrics["achieved_sparsity"], run.metrics["kept_mass"]
    if run.metrics["entropy"] is None and mass is not None:
        return "attention: dense, the model's own; sparsity and kept mass were not measured"
    if mass is None:
        return "attention: scores are not finite, so sparsity and kept mass have no meaning"
    return (
        f"achieved sparsity {sparsity:.1%}, kept mass {mass:.1%} "
        f"(in evaluation, mean over all layers and heads)"
    )
