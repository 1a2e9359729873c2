"""The `crisp` command. Thin: it parses, calls and prints; heavy imports happen inside the commands."""

import os
import re
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from crisp_attention.bench.options import BenchOptions
from crisp_attention.cli.profile_options import ProfileOptions
from crisp_attention.runs.options import FinetuneOptions, MethodsOptions
from crisp_attention.runs.ranks import after_main, is_main
from crisp_attention.runs.terminal import any_terminal, can_write, table_console
from crisp_attention.studies.options import (
    DemoOptions,
    ReportOptions,
    ReproduceOptions,
    SweepOptions,
    ViewOptions,
)

if TYPE_CHECKING:
    from rich.console import Console

    from crisp_attention.runs.finetune import Run
    from crisp_attention.studies.study import Study

USER_ERROR = 2
FAILED_RUNS = 3
INTERRUPTED = 130
FLAGS = {"data": "dataset"}  # what the command line calls otherwise than Python
Options = (
    FinetuneOptions
    | SweepOptions
    | ReproduceOptions
    | ProfileOptions
    | ViewOptions
    | ReportOptions
    | DemoOptions
    | BenchOptions
    | MethodsOptions
)
Command = (
    Annotated[FinetuneOptions, tyro.conf.subcommand("finetune")]
    | Annotated[SweepOptions, tyro.conf.subcommand("sweep")]
    | Annotated[ReproduceOptions, tyro.conf.subcommand("reproduce")]
    | Annotated[ProfileOptions, tyro.conf.subcommand("profile")]
    | Annotated[ViewOptions, tyro.conf.subcommand("view")]
    | Annotated[ReportOptions, tyro.conf.subcommand("report")]
    | Annotated[DemoOptions, tyro.conf.subcommand("demo")]
    | Annotated[BenchOptions, tyro.conf.subcommand("bench")]
    | Annotated[MethodsOptions, tyro.conf.subcommand("methods")]
)


def parse(arguments: list[str] | None = None) -> Options:
    """The options of the command named in `arguments`, by default those of the process."""
    return tyro.cli(
        Command,
        args=arguments,
        prog="crisp",
        description="Sparse attention for Transformers models, and the proof of what it did.",
        config=(tyro.conf.FlagCreatePairsOff,),
        console_outputs=is_main(),
    )


def main() -> None:
    """Entry point of the console script."""
    with any_terminal():
        try:
            _run(parse())
        except SystemExit:
            after_main()
            raise


def _run(options: Options) -> None:
    if "RANK" in os.environ:
        # each process would warn that no parameter is unused
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from rich.console import Console

    from crisp_attention.errors import CrispError, OptionError, first_line
    from crisp_attention.runs.quiet import be_quiet
    from crisp_attention.runs.shortage import shortage

    console = Console(stderr=True, quiet=not is_main())
    be_quiet()
    try:
        if isinstance(options, FinetuneOptions):
            _finetune(options, console)
        elif os.environ.get("WORLD_SIZE", "1") != "1":
            raise OptionError("only crisp finetune runs in several processes; start this without torchrun")
        elif isinstance(options, SweepOptions):
            from crisp_attention.studies.sweep.command import run_sweep

            _end(run_sweep(options, console), console)
        elif isinstance(options, ReproduceOptions):
            from crisp_attention.studies.reproduce import run_reproduce

            _end(run_reproduce(options, console), console)
        elif isinstance(options, ProfileOptions):
            from crisp_attention.cli.profiling import run_profile

            run_profile(options, console)
        elif isinstance(options, ViewOptions):
            from crisp_attention.view import run_view

            run_view(options, console)
        elif isinstance(options, ReportOptions):
            from crisp_attention.studies.report import run_report

            run_report(options, console)
        elif isinstance(options, DemoOptions):
            from crisp_attention.studies.demo import run_demo

            _end(run_demo(options, console), console)
        elif isinstance(options, BenchOptions):
            from crisp_attention.bench.command import run_bench

            run_bench(options, console)
        else:
            _methods()
    except KeyboardInterrupt:
        console.print(f"interrupted{_way_on(options)}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    except CrispError as error:
        _refuse(console, as_typed(error))
    except Exception as error:  # disks and memory end in errors of every library
        if isinstance(error, OSError) and error.filename is None and not can_write():
            raise
        if found := shortage(error):
            _refuse(console, f"{found.value} ({first_line(error)}){_way_on(options)}")
        if not isinstance(error, OSError) or error.filename is None:
            raise
        _refuse(console, f"{error.filename}: {error.strerror}")


def _refuse(console: "Console", reason: str) -> NoReturn:
    console.print("[red]error:[/red]", end=" ")
    console.print(reason, markup=False, highlight=False, soft_wrap=True)
    sys.exit(USER_ERROR)


def as_typed(error: Exception) -> str:
    """The message with the flags that a person types in place of the values that Python names."""
    text = re.sub(r"\b([a-z][a-z_]*)=True\b", lambda found: _flag(found[1]), str(error))
    text = re.sub(r"\b([a-z][a-z_]*)=([A-Z]+)\b", lambda found: f"{_flag(found[1])} {found[2]}", text)
    option = getattr(error, "option", None)
    if option is None:
        return text
    named = re.match(rf"{re.escape(option)}\b", text)
    return f"{_flag(option)}{text[named.end() :]}" if named else f"{_flag(option)}: {text}"


def _flag(option: str) -> str:
    return f"--{FLAGS.get(option, option).replace('_', '-')}"


def _end(study: "Study", console: "Console") -> None:
    if failed := study.failed():
        console.print(f"{len(failed)} runs failed; --retry-failed runs them again", highlight=False)
        sys.exit(FAILED_RUNS)


def _finetune(options: FinetuneOptions, console: "Console") -> None:
    from accelerate import PartialState

    from crisp_attention.runs.finetune import finetune

    run = finetune(options, console)
    PartialState().destroy_process_group()
    output = table_console()
    output.quiet = not is_main()
    output.print(_table(run.metrics))
    diverged = [
        split for split in ("validation", "test") if run.metrics.get(split, {"loss": 0})["loss"] is None
    ]
    for line in (
        *([f"the run diverged: logits on {' and '.join(diverged)} are not finite"] if diverged else []),
        _attention(run),
        f"{run.metrics['steps']:,} steps in {run.metrics['train_seconds']:.0f} s on "
        f"{run.metrics['device']}, {run.metrics['seconds_per_step']:.3f} s a step; "
        f"peak memory {run.metrics['peak_memory_bytes'] / 2**30:.1f} GiB",
        f"everything is in {run.directory.path}",
    ):
        output.print(line, highlight=False, soft_wrap=True)


def _way_on(options: Options) -> str:
    if isinstance(options, SweepOptions | ReproduceOptions | DemoOptions):
        return "; the same command continues the study"
    if not isinstance(options, FinetuneOptions) or not (options.output / "config.json").is_file():
        return ""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    processes = os.environ.get("WORLD_SIZE", "1")
    start = "crisp" if processes == "1" else f"torchrun --nproc-per-node {processes} -m crisp_attention"
    return f"; to continue: {start} {shlex.join(words)} --resume"


def _methods() -> None:
    from rich.console import Console
    from rich.table import Table

    from crisp_attention.methods import layouts, rules
    from crisp_attention.methods.options import options_of

    table = Table(show_lines=True)
    table.add_column("method", no_wrap=True)
    table.add_column("options", no_wrap=True)
    table.add_column("what it does", overflow="fold")
    parts: list[Any] = [*rules.ALL, *layouts.ALL]
    for part in parts:
        options = [
            name if default is None else f"{name}={default}" for name, default in options_of(part).items()
        ]
        what = (part.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")
        table.add_row(part.name, "\n".join(options), what)
    output = Console()
    output.print(table)
    for line in (
        "A layout (full, window, block_topk) says where a query may look, a rule what it keeps of that; join the",
        "two with a plus. For example: --method topk:sparsity=0.5, --method window:width=9+entmax:alpha=1.5",
    ):
        output.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(metrics: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("split")
    for heading in ("examples", "accuracy", "loss"):
        table.add_column(heading, justify="right")
    for split in ("train", "validation", "test"):
        if split in metrics:
            seen = metrics[split]
            loss = "not finite" if seen["loss"] is None else f"{seen['loss']:.4f}"
            cells = (f"{seen['examples']:,}", f"{seen['accuracy']:.1%}", loss)
            table.add_row(split, *cells)
    return table


def _attention(run: "Run") -> str:
    sparsity, mass = run.metrics["achieved_sparsity"], run.metrics["kept_mass"]
    if not run.directory.measurements.is_file():
        return "attention: dense, the model's own; sparsity and kept mass were not measured"
    if mass is None:
        return "attention: scores are not finite, so sparsity and kept mass say nothing"
    return (
        f"achieved sparsity {sparsity:.1%}, kept mass {mass:.1%} "
        f"(in evaluation, mean over all layers and heads)"
    )
