"""`crisp profile`: where a model tolerates sparsity on a data set, as a table, a figure and budgets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import set_seed

from crisp_attention.cli.options import ProfileOptions, run_values
from crisp_attention.errors import OptionError, listed
from crisp_attention.files import check_folder
from crisp_attention.insight.profile.profile import MASSES, Profile, profile
from crisp_attention.insight.profile.targets import METHODS
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.rules.share import DEFAULT_SPARSITY
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.classes import of_classes
from crisp_attention.runs.data.splits import sample
from crisp_attention.runs.sources import Source, load_source
from crisp_attention.runs.sources.encoding import encoded
from crisp_attention.runs.spec import Data
from crisp_attention.runs.task.target import Classification
from crisp_attention.runs.terminal import table_console
from crisp_attention.runs.trainer import longest_first

SPARSITY = 0.8
TITLE = (
    "Means over heads: dense attention, the mass kept at a target sparsity of 80%\n"
    "(achieved sparsity in the headings), and the sparsity that keeps 95% of the mass"
)


def run_profile(options: ProfileOptions, console: Console | None = None) -> Profile:
    """Profile a model on a sample of a data set, write the files and print what follows from it.

    Notes and progress go to `console`. Raises OptionError, DataError or CheckpointError, before
    anything is written, for what cannot work.
    """
    console = console or Console(quiet=True)
    _check(options)
    task = load_task(Data.from_dict(run_values(options)))
    set_seed(0)  # builtin:vit is drawn at random
    source = load_source(options.model, task, options.max_length)
    split = options.split
    rows = task.splits[split]
    if isinstance(task.target, Classification) and task.target.classes:
        rows = of_classes(rows, task.target.classes)
    task = replace(task, splits={split: sample(rows, options.examples)})
    task = encoded(source, task)
    rows = longest_first(task.splits[split])
    notes = [*_notes(source), *task.notes, f"profiling {len(rows):,} examples of the {split} split"]
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if (device := torch.accelerator.current_accelerator(check_available=True)) is not None:
        source.model.to(device)  # type: ignore[arg-type]
    batches = DataLoader(rows, batch_size=options.batch_size, collate_fn=source.collate)
    shown = track(batches, "profiling", console=console, transient=True, disable=not console.is_terminal)
    try:
        found = profile(
            source.model,
            shown,
            block_size=options.block_size,
            sparsities=() if options.sparsity is None else (options.sparsity,),
        )
        budgets = _recommended(found, options)
    except ValueError as error:
        raise OptionError(str(error)) from error
    try:
        _write(found, budgets, options)
    except OSError as error:
        raise OptionError(f"cannot write the profile: {error}") from error
    report(found, budgets, options)
    return found


def _check(options: ProfileOptions) -> None:
    if options.sparsity is not None and options.mass is not None:
        raise OptionError("--sparsity and --mass cannot be combined; give one of them")
    try:
        for flag in ("examples", "batch_size", "block_size"):
            check_whole(f"--{flag.replace('_', '-')}", getattr(options, flag), 1)
        if options.sparsity is not None:
            check_number("--sparsity", options.sparsity, "[0, 1)")
        if options.mass is not None:
            check_number("--mass", options.mass, "(0, 1]")
    except ValueError as error:
        raise OptionError(str(error)) from error
    check_folder(options.output)
    if options.save is not None:
        if options.save.is_dir():
            raise OptionError(f"--save {options.save} is a folder; expected a file, such as budgets.json")
        check_folder(options.save.parent, "save")


def _notes(source: Source) -> list[str]:
    # classifier and pooler come after all attention
    inside = f"{source.model.base_model_prefix}."
    drawn = [name for name in source.drawn if name.startswith(inside) and ".pooler." not in name]
    warning = f"the profile is of randomly initialised weights: the checkpoint lacks {listed(drawn)}"
    return [source.notes[0], *([warning] if drawn else []), *source.settled]


def _recommended(found: Profile, options: ProfileOptions) -> Budgets:
    if options.mass is not None:
        return found.recommend(mass=options.mass, method=options.method)
    sparsity = DEFAULT_SPARSITY if options.sparsity is None else options.sparsity
    return found.recommend(sparsity=sparsity, method=options.method)


def _write(found: Profile, budgets: Budgets, options: ProfileOptions) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    found.table().to_csv(options.output / "heads.csv", index=False)
    found.curves().to_csv(options.output / "curves.csv", index=False)
    found.plot(options.output / "profile.png", budgets)
    if options.save is not None:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        budgets.save(options.save)


def report(found: Profile, budgets: Budgets, options: ProfileOptions) -> None:
    """Print the means of each layer, what is safe, what is recommended, and where the files are."""
    console = table_console()
    console.print(_layers(found))
    lines = [
        _safe(mass, found.recommend(mass=mass, method=options.method).expected)
        for mass in dict.fromkeys([*MASSES, *([options.mass] if options.mass else [])])
    ]
    if options.mass is None:
        seen = budgets.expected
        lines.append(
            f"recommended budgets, with as many pairs as a sparsity of {seen['target']['sparsity']:g} in all heads "
            f"({seen['sparsity']:.1%} achieved): {seen['mass']:.1%} of the mass kept, "
            f"instead of {seen['uniform']['mass']:.1%}"
        )
    lines.append(f"tables of heads and curves, and the figure, are in {options.output}")
    if options.save is not None:
        lines.append(f"the budgets are in {options.save}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _safe(mass: float, seen: Mapping[str, Any]) -> str:
    return (
        f"every head keeps {100 * mass:g}% of its mass with {METHODS[seen['method']]} at an overall sparsity of "
        f"{seen['sparsity']:.1%}; with the same sparsity in all heads, {seen['uniform']['sparsity']:.1%}"
    )


def _layers(found: Profile) -> Table:
    table = Table("layer", title=TITLE, box=box.SIMPLE_HEAD)
    columns = {"entropy": "entropy\n(nats)", "distance": "distance\n(tokens)"}
    for method, word in METHODS.items():
        achieved, _ = found.kept(found.targets.method(method, SPARSITY))
        columns[f"{method}_mass_80"] = f"{word},\nat {achieved:.0%}"
        columns[f"{method}_sparsity_95"] = f"{word},\nfor 95%"
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for layer, means in found.table().groupby("layer")[[*columns]].mean().iterrows():
        cells = [f"{means[each]:{'.1%' if '_' in each else '.2f'}}" for each in columns]
        table.add_row(str(layer), *("" if cell.startswith("nan") else cell for cell in cells))
    return table
