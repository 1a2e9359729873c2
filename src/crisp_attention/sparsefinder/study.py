"""`crisp sparsefinder study`: how well entmax's pairs are predicted, by all variants and by what they compete with."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from rich.console import Console
from torch import nn

from crisp_attention.errors import OptionError
from crisp_attention.insight.fitting import TOKENS
from crisp_attention.methods.checks import check_whole
from crisp_attention.sparsefinder.findings import Results, findings
from crisp_attention.sparsefinder.options import StudyOptions
from crisp_attention.sparsefinder.page import check_study, write_study
from crisp_attention.sparsefinder.quality import Quality, evaluate
from crisp_attention.sparsefinder.scoring import Batches, score
from crisp_attention.sparsefinder.settings import Setting, settings
from crisp_attention.sparsefinder.trained import entmax_layers, read_trained

QUICK = 64  # examples


def study(
    model: nn.Module,
    batches: Batches,
    held_out: Batches,
    chosen: Sequence[Setting],
    *,
    quality: Quality | None = None,
    seeds: int = 3,
    tokens: int = TOKENS,
    progress: bool = True,
) -> Results:
    """Compare settings on a model with entmax, of any kind: it need not be a classifier, and data need no labels.

    Parameters
    ----------
    model
        A model with entmax in some of its layers, which does not change.
    batches, held_out
        What everything is fitted to, and scored on: lists of arguments of the model's forward, read once a layer.
    chosen
        The settings, as `settings()` gives them.
    quality
        What the model is evaluated by with each main setting; None for not at all.
    seeds
        How often what is fitted or drawn is fitted or drawn anew.
    tokens
        How many tokens of each of the two are looked at.
    progress
        Whether bars on standard error show the layers and evaluations.

    Raises
    ------
    OptionError
        For a model without entmax.
    ValueError
        For a sample that is too small, or a setting that does not fit, such as a rank beyond the width of heads.
    """
    scored = score(model, batches, held_out, chosen, seeds=seeds, tokens=tokens, progress=progress)
    outcome = pd.DataFrame()
    if quality is not None:
        outcome = evaluate(model, quality, chosen, scored, seeds=seeds, progress=progress)
    learned = tuple(dict.fromkeys(each.variant for each in chosen if each.learned))
    notes = tuple(f"left out: {name} ({reason})" for name, reason in scored.refused.items())
    return Results(scored.table, outcome, learned, quality, notes, scored.fitted_to, scored.scored_on)


def run_study(options: StudyOptions, console: Console | None = None) -> Results:
    """Make the study, write it and print what it found.

    Notes and progress go to `console`. Raises OptionError, DataError or CheckpointError, before anything is written,
    for what cannot work.
    """
    console = console or Console(quiet=True)
    options = _checked(options)
    chosen = settings(options.rank, quick=options.quick)
    evaluated = max(options.scored_examples, options.quality_examples)
    trained = read_trained(options, {"train": options.examples, "validation": evaluated})
    layers = entmax_layers(trained.model)
    for note in (
        *trained.source.notes,
        *trained.task.notes,
        f"{len(chosen)} settings, {options.seeds} seeds, {len(layers)} layers with entmax",
    ):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    quality = None
    if options.quality_examples:
        batches = trained.batches("validation", options.quality_examples, options.batch_size)
        quality = Quality.of_target(trained.task.target, batches)
    try:
        found = study(
            trained.model,
            trained.batches("train", options.examples, options.batch_size),
            trained.batches("validation", options.scored_examples, options.batch_size),
            chosen,
            quality=quality,
            seeds=options.seeds,
            progress=not console.quiet,
        )
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(str(error)) from error
    facts = {
        "model": options.model,
        "data set": options.dataset,
        "layers": str(len(layers)),
        "rank": str(options.rank),
        "fitted to": f"{found.fitted_to:,} training examples",
        "scored on": f"{found.scored_on:,} validation examples",
        "seeds": str(options.seeds),
    }
    if quality is not None:
        evaluated = min(options.quality_examples, len(trained.task.splits["validation"]))
        facts["evaluated on"] = f"{evaluated:,} validation examples"
    write_study(found, options.output, facts)
    printed = Console()
    for line in (
        *findings(found),
        *found.notes,
        f"the study is in {options.output}: open {options.output / 'study.html'}",
    ):
        printed.print(line, markup=False, highlight=False, soft_wrap=True)
    return found


def _checked(options: StudyOptions) -> StudyOptions:
    """The options as they are used. Raises OptionError for values that cannot be."""
    for name, least in (
        ("examples", 1), ("scored_examples", 1), ("quality_examples", 0), ("seeds", 1), ("rank", 1),
    ):  # fmt: skip
        try:
            check_whole(name, getattr(options, name), least)
        except ValueError as error:
            raise OptionError(str(error), name) from error
    check_study(options.output)
    if not options.quick:
        return options
    counts = {
        name: min(getattr(options, name), QUICK)
        for name in ("examples", "scored_examples", "quality_examples")
    }
    return replace(options, seeds=1, **counts)
