"""`crisp profile`: where a data set leaves a model room for sparsity, as a table, a picture and budgets."""

from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader
from transformers import set_seed

from crisp_attention.cli.profile_options import ProfileOptions
from crisp_attention.cli.profile_report import report
from crisp_attention.errors import OptionError, listed
from crisp_attention.files import check_folder, plain
from crisp_attention.insight.profile.dense_pass import profile
from crisp_attention.insight.profile.profile import Profile
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.checks import check_number, check_whole
from crisp_attention.methods.rules.share import DEFAULT_SPARSITY
from crisp_attention.runs.data import load_task
from crisp_attention.runs.data.splits import sample
from crisp_attention.runs.sources import Source, load_source
from crisp_attention.runs.sources.encoding import encoded
from crisp_attention.runs.spec import Data
from crisp_attention.runs.trainer import longest_first


def run_profile(options: ProfileOptions, console: Console | None = None) -> Profile:
    """Profile a model on a sample of a data set, write the files and print what follows from it.

    Notes and progress go to `console`. Raises OptionError, DataError or CheckpointError, before
    anything is written, for what cannot work.
    """
    console = console or Console(quiet=True)
    _check(options)
    task = load_task(Data.from_dict(plain(options)))
    set_seed(0)  # builtin:vit is drawn at random
    source = load_source(options.model, task, options.max_length)
    split = options.split
    task = replace(task, splits={split: sample(task.splits[split], options.examples)})
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
        raise OptionError("--sparsity and --mass each ask for budgets of their own; give one")
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
    # the classifier and what pools for it come after all attention
    inside = f"{source.model.base_model_prefix}."
    drawn = [name for name in source.drawn if name.startswith(inside) and ".pooler." not in name]
    warning = f"the profile is of weights drawn at random, as the checkpoint lacks {listed(drawn)}"
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
