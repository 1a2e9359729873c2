"""The `crisp` command: parses, calls and reports errors; heavy imports happen inside the commands."""

import inspect
import os
import re
import sys
from dataclasses import fields
from functools import reduce
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from crisp_attention.bench.options import BenchOptions
from crisp_attention.cli.config import with_config
from crisp_attention.cli.options import (
    DemoOptions,
    FinetuneOptions,
    MethodsOptions,
    ProfileOptions,
    ReportOptions,
    ReproduceOptions,
    SweepOptions,
)
from crisp_attention.cli.pruning_options import PruneOptions
from crisp_attention.diffusion.options import DiffusionOptions
from crisp_attention.errors import CrispError, OptionError, did_you_mean, first_line, listed, shortage
from crisp_attention.runs.terminal import after_main, any_terminal, be_quiet, can_write, is_main
from crisp_attention.sparsefinder.options import FitOptions, StudyOptions
from crisp_attention.view.options import ViewOptions

if TYPE_CHECKING:
    from rich.console import Console

USER_ERROR = 2
FAILED_RUNS = 3
INTERRUPTED = 130
# the options of every command, and what is called with them and a console
COMMANDS: dict[str, tuple[type, str, str]] = {
    "finetune": (FinetuneOptions, "cli.finetune", "run_finetune"),
    "sweep": (SweepOptions, "cli.sweep", "run_sweep"),
    "reproduce": (ReproduceOptions, "cli.reproduce", "run_reproduce"),
    "sparsefinder fit": (FitOptions, "sparsefinder.fit", "run_fit"),
    "sparsefinder study": (StudyOptions, "sparsefinder.study", "run_study"),
    "prune": (PruneOptions, "cli.prune", "run_prune"),
    "profile": (ProfileOptions, "cli.profile", "run_profile"),
    "view": (ViewOptions, "view.command", "run_view"),
    "report": (ReportOptions, "cli.report", "run_report"),
    "demo": (DemoOptions, "cli.demo", "run_demo"),
    "demo diffusion": (DiffusionOptions, "diffusion.study", "run_diffusion"),
    "bench": (BenchOptions, "bench.command", "run_bench"),
    "methods": (MethodsOptions, "cli.methods", "run_methods"),
}
# what is said of commands of two words
GROUPS = {
    "sparsefinder": "Predict which pairs entmax will connect: fit a model, or study how well it can be done."
}
RUNS = (FinetuneOptions, PruneOptions)
STUDIES = (SweepOptions, ReproduceOptions, DemoOptions)
FLAGS = {
    "data": "dataset",
    "methods": "method",
    "recipes": "recipe",
}  # values whose flag has another name than in Python
CONFIG_HELP = "--config FILE reads options from a YAML or JSON file; options on the command line override it."
IN_SPECS = {"method", "sparsity"}  # written as sparsity=0.8 in a method's spec too
LISTS = {
    each.name
    for options, *_ in COMMANDS.values()
    for each in fields(options)
    if isinstance(each.default, tuple)
}


def parse(arguments: list[str] | None = None) -> Any:
    """The options of the command named in `arguments`, by default those of the process."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words == ["--version"]:
        print(f"crisp {version('crisp-attention')}")
        sys.exit(0)
    groups = {_first_word(name) for name in COMMANDS}
    if words and not words[0].startswith("-") and words[0] not in groups:
        close = did_you_mean(words[0], groups)
        raise OptionError(
            f"there is no command {words[0]}{close or f'; the commands are {listed(COMMANDS)}'}"
        )
    options = {name: options for name, (options, *_) in COMMANDS.items()}
    words = _joined(with_config(words, options))
    for word, after in pairwise([*words, "--"]):  # tyro takes none for the default
        name = word.removeprefix("--").replace("-", "_")
        if word.startswith("--") and after.startswith("--") and name in LISTS:
            raise OptionError(f"{name} expects at least one value, found none", name)
    commands: Any = reduce(or_, (_group(name) for name in dict.fromkeys(map(_first_word, COMMANDS))))
    return tyro.cli(
        commands,
        args=words,
        prog="crisp",
        description="Sparse attention for Transformers models, and evidence of what it does. `crisp --version` "
        "prints the version.",
        config=(tyro.conf.FlagCreatePairsOff,),
        console_outputs=is_main(),
    )


def _first_word(name: str) -> str:
    """How a command or its group is called; a second word after one that is a command itself belongs to it."""
    first = name.split()[0]
    return name if first in COMMANDS else first


def _joined(words: list[str]) -> list[str]:
    name = " ".join(words[:2])
    return [name, *words[2:]] if name in COMMANDS and words[0] in COMMANDS else words


def _group(name: str) -> Any:
    """A command, or those whose first word is the same."""
    if name in COMMANDS:
        return _subcommand(name, COMMANDS[name][0])
    inside = [each for each in COMMANDS if each.startswith(f"{name} ")]
    several: Any = reduce(or_, (_subcommand(each.split()[1], COMMANDS[each][0]) for each in inside))
    return Annotated[several, tyro.conf.subcommand(name, description=GROUPS[name])]


def _subcommand(name: str, options: type) -> Any:
    described = f"{inspect.cleandoc(options.__doc__ or '')}\n\n{CONFIG_HELP}"
    return Annotated[options, tyro.conf.subcommand(name, description=described)]


def main() -> None:
    """Entry point of the console script."""
    with any_terminal():
        try:
            _run()
        except SystemExit:
            after_main()
            raise


def _run() -> None:
    if "RANK" in os.environ:
        # each process would warn that no parameter is unused
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from rich.console import Console

    console = Console(stderr=True, quiet=not is_main())
    try:
        options = parse()
    except OptionError as error:
        _refuse(console, as_typed(error, FinetuneOptions))
    be_quiet()
    try:
        if not isinstance(options, RUNS) and os.environ.get("WORLD_SIZE", "1") != "1":
            raise OptionError(
                "only crisp finetune and crisp prune run in several processes; start this without torchrun"
            )
        _, module, function = next(each for each in COMMANDS.values() if isinstance(options, each[0]))
        found = getattr(import_module(f"crisp_attention.{module}"), function)(options, console)
    except KeyboardInterrupt:
        console.print(f"interrupted{_to_continue(options)}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    except CrispError as error:
        _refuse(console, as_typed(error, options))
    except Exception as error:  # a full disk or memory raises errors of any library
        if isinstance(error, OSError) and error.filename is None and not can_write():
            raise
        if lacking := shortage(error):
            _refuse(console, f"{lacking.value} ({first_line(error)}){_to_continue(options)}")
        if not isinstance(error, OSError) or error.filename is None:
            raise
        _refuse(console, f"{error.filename}: {error.strerror}")
    if isinstance(options, STUDIES) and (failed := found.failed()):
        console.print(
            f"failed runs: {len(failed)}; run the same command with --retry-failed to repeat them",
            highlight=False,
        )
        sys.exit(FAILED_RUNS)


def as_typed(error: CrispError, options: Any) -> str:
    """The error's message with the flags that a person types in place of the values that Python names."""
    names = {each.name for each in fields(options)} | set(FLAGS)
    known = "|".join(sorted(names - IN_SPECS))

    def flag(name: str) -> str:
        return f"--{FLAGS.get(name, name).replace('_', '-')}"

    def given(found: re.Match[str]) -> str:
        return flag(found[1]) if found[2] == "True" else f"{flag(found[1])} {found[2]}"

    text = re.sub(rf"(?<![:\w])({known})=(True|[A-Z]+|\d+)\b", given, str(error))
    # what a resumed run was started with
    text = re.sub(rf"(?<=[:;] )({'|'.join(names)})(?= was )", lambda found: flag(found[1]), text)
    option = getattr(error, "option", None)
    if option is None:
        return text
    named = re.match(rf"{option}\b", text)
    return f"{flag(option)}{text[named.end() :]}" if named else f"{flag(option)}: {text}"


def _refuse(console: "Console", reason: str) -> NoReturn:
    console.print("[red]error:[/red]", end=" ")
    console.print(reason, markup=False, highlight=False, soft_wrap=True)
    sys.exit(USER_ERROR)


def _to_continue(options: Any) -> str:
    if isinstance(options, STUDIES):
        return "; run the same command again to continue"
    if isinstance(options, RUNS):
        from crisp_attention.cli.finetune import to_continue

        return to_continue(options)
    return ""
