"""The `crisp` command. Thin: it parses, calls and prints; heavy imports happen inside the commands."""

import sys
from typing import Annotated

import tyro

from crisp_attention.evidence.options import DemoOptions
from crisp_attention.training.options import FinetuneOptions

USER_ERROR = 2
Command = (
    Annotated[FinetuneOptions, tyro.conf.subcommand("finetune")]
    | Annotated[DemoOptions, tyro.conf.subcommand("demo")]
)


def main() -> None:
    """Entry point of the console script."""
    options = tyro.cli(
        Command,
        prog="crisp",
        description="Sparse attention for Transformers models, and the proof of what it did.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from rich.console import Console

    from crisp_attention.models.persistence import CheckpointError
    from crisp_attention.training.data import DataError
    from crisp_attention.training.options import OptionError

    console = Console(stderr=True)
    _quiet()
    try:
        if isinstance(options, FinetuneOptions):
            _finetune(options)
        else:
            from crisp_attention.evidence.demo import run_demo

            run_demo(options)
    except (CheckpointError, DataError, OptionError) as error:
        console.print("[red]error:[/red]", end=" ")
        console.print(str(error), markup=False, highlight=False)
        sys.exit(USER_ERROR)


def _finetune(options: FinetuneOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    from crisp_attention.training.finetune import finetune

    run = finetune(options)
    console = Console()
    for note in run.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    table = Table("split", "examples", "accuracy", "loss")
    for split in ("train", "validation", "test"):
        if split in run.metrics:
            seen = run.metrics[split]
            table.add_row(
                split, f"{seen['examples']:,}", f"{100 * seen['accuracy']:.2f} %", f"{seen['loss']:.4f}"
            )
    console.print(table)
    console.print(
        f"achieved sparsity {run.metrics['achieved_sparsity']:.1%}, kept mass {run.metrics['kept_mass']:.1%}\n"
        f"everything is in {run.directory.path}",
        highlight=False,
    )


def _quiet() -> None:
    import datasets
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors reach the user as DataError
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
