"""`crisp demo diffusion`: the command."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crisp_attention.diffusion.digits import STEPS, Classifier, Digits
from crisp_attention.diffusion.findings import findings
from crisp_attention.diffusion.model import TOKENS, build
from crisp_attention.diffusion.options import DiffusionOptions
from crisp_attention.diffusion.page import write_report
from crisp_attention.diffusion.runs import Run, file_of, keep, make, model_of, runs_in
from crisp_attention.diffusion.variants import variants
from crisp_attention.errors import OptionError
from crisp_attention.files import check_ours, write_json
from crisp_attention.flags import separated
from crisp_attention.methods.checks import check_number, check_whole

OWN = {"settings.json", "models", "runs", "report.html", "table.csv", "figures"}
LISTS = ("sparsity", "loss", "train")
CONTINUED = ("seeds", *LISTS)  # options that may be others when a comparison is continued
QUICK = 40  # held-out images of a quick run
LINES = 10  # of progress for each training, without a terminal


def run_diffusion(options: DiffusionOptions, console: Console | None = None) -> list[Run]:
    """Make all runs that are not there yet, and the report.

    Raises OptionError, before anything is trained, for what cannot work.
    """
    console = console or Console(quiet=True)
    options = _checked(options)
    asked = {name: separated(getattr(options, name)) for name in LISTS}
    chosen = variants(_numbers(asked["sparsity"]), asked["loss"], asked["train"], options.block_size)
    for each in chosen:
        if each.method is not None and each.method.layout.shows_everything(TOKENS):
            raise OptionError(
                f"block_size {options.block_size}: {each.label} keeps all blocks of {TOKENS} tokens; expected smaller "
                f"blocks or a higher sparsity",
                "block_size",
            )
    digits = Digits.read(*([QUICK] if options.quick else []))
    build(0)
    _settle(options)
    missing = [
        (seed, variant)
        for seed in range(options.seeds)
        for variant in chosen
        if not file_of(options.output, variant, seed).exists()
    ]
    classifier = Classifier.trained(digits, options.pretraining if options.quick else STEPS)
    with _progress(console) as step_of:
        for number, (seed, variant) in enumerate(missing, 1):
            told = step_of(f"training the model of seed {seed}", options.pretraining)
            dense = model_of(options.output, digits, seed, options.pretraining, told)
            told = step_of(f"{variant.label}, seed {seed} ({number} of {len(missing)} runs)", options.steps)
            run = make(dense, variant, seed, digits, classifier, options.steps, options.samples, told)
            keep(run, file_of(options.output, variant, seed))
    runs = runs_in(options.output)
    write_report(runs, options.output, options)
    printed = Console()
    for line in (*findings(runs, quick=options.quick), f"the report is {options.output / 'report.html'}"):
        printed.print(line, markup=False, highlight=False, soft_wrap=True)
    return runs


def _checked(options: DiffusionOptions) -> DiffusionOptions:
    """The options as they are used. Raises OptionError for values that cannot be."""
    name = ""
    try:
        for name, least in (
            ("seeds", 1), ("steps", 1), ("pretraining", 1), ("block_size", 1), ("samples", 20),
        ):  # fmt: skip
            check_whole(name, getattr(options, name), least)
    except (TypeError, ValueError) as error:
        raise OptionError(str(error), name) from error
    for name in LISTS:
        if not separated(getattr(options, name)):
            raise OptionError(f"{name} needs at least one value", name)
    check_ours(options.output, "such a comparison", OWN.__contains__)
    return replace(options, steps=4, pretraining=10, samples=20) if options.quick else options


def _numbers(words: list[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
        for number in numbers:
            check_number("sparsity", number, "(0, 1)")
    except ValueError as error:
        raise OptionError(
            f"sparsity: expected numbers in (0, 1), got {', '.join(words)}", "sparsity"
        ) from error
    return numbers


def _settle(options: DiffusionOptions) -> None:
    """Note how the runs are made. Raises OptionError if the folder's were made in another way."""
    now = {name: value for name, value in asdict(options).items() if name not in ("output", *CONTINUED)}
    file = options.output / "settings.json"
    if file.exists():
        before: dict[str, Any] = json.loads(file.read_text())
        for name, value in now.items():
            if before.get(name) != value:
                raise OptionError(
                    f"{name} is {value}, but {options.output} was made with {before.get(name)}; choose another folder",
                    name,
                )
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(file, now)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Gives a function that begins a bar or, without a terminal, some lines, and what to call with finished steps."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def begin(what: str, steps: int) -> Callable[[int], None]:
            for task in bars.task_ids:
                bars.remove_task(task)
            bar = bars.add_task(what, total=steps)

            def told(step: int) -> None:
                bars.update(bar, completed=step)
                if not console.is_terminal and step % max(1, steps // LINES) == 0:
                    console.print(
                        f"{what}: step {step:,} of {steps:,}", markup=False, highlight=False, soft_wrap=True
                    )

            return told

        yield begin
