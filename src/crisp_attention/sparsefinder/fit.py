"""`crisp sparsefinder fit`: a fitted model from a trained one, and a table of how well its pairs are predicted."""

from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from crisp_attention.errors import OptionError, listed
from crisp_attention.files import NAMED, check_replaced, replacing
from crisp_attention.insight.fitting import TOKENS, Fit, fit
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.layouts import Sparsefinder
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import Rule
from crisp_attention.methods.spec import parse
from crisp_attention.models.apply import sparsify
from crisp_attention.models.settings import settings_on
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.runs.terminal import table_console
from crisp_attention.sparsefinder.options import FitOptions
from crisp_attention.sparsefinder.trained import entmax_layers, read_trained

SCORES = {
    "sparsity": "sparsity",
    "gold_sparsity": "of the rule",
    "recall": "recall",
    "exact": "exact rows",
    "kept_mass": "kept mass",
}


def run_fit(options: FitOptions, console: Console | None = None) -> Fit:
    """Fit, save the model and its scores, and print the means of each layer.

    Notes and progress go to `console`. Raises OptionError, DataError or CheckpointError, before anything is written,
    for what cannot work.
    """
    console = console or Console(quiet=True)
    asked, gold = _check(options)
    trained = read_trained(options, {options.split: options.examples})
    model, source = trained.model, trained.source
    left = give_finders(model, asked, everywhere=gold is not None or "+" in options.method)
    batches = trained.batches(options.split, options.examples, options.batch_size)
    examples = f"fitting to {len(trained.task.splits[options.split]):,} examples of the {options.split} split"
    alone = [f"left unchanged, as not all of their heads use entmax: {listed(left)}"] if left else []
    for note in (*source.notes, *trained.task.notes, *alone, examples):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    try:
        found = fit(model, batches, gold=gold, seed=options.seed, progress=not console.quiet)
    except ValueError as error:
        raise OptionError(str(error)) from error
    if found.batches < len(batches):
        console.print(f"{found.batches} of {len(batches)} batches were enough: they have {TOKENS:,} tokens")
    with replacing(options.output, check_new) as folder:
        source.model.save_pretrained(folder)
        if source.processor is not None:
            source.processor.save_pretrained(folder)
        found.table().to_csv(folder / "sparsefinder.csv", index=False)
    _print(found, options)
    return found


def give_finders(model: nn.Module, asked: Method, *, everywhere: bool) -> list[str]:
    """Give every layer the method, or only its layout to the layers with entmax.

    Returns the layers that keep another method, in words. Raises OptionError where the method does not fit, and, if it
    is not given `everywhere`, for a model without entmax.
    """
    try:
        if everywhere:
            sparsify(model, asked)
            return []
        found = entmax_layers(model)
        sparse = SparseModel.of(model)
        left = {
            layer: own
            for layer in sparse.layers
            if layer not in found and (own := settings_on(layer).method) is not None
        }
        methods: dict[int | str, LayerMethod] = {layer.index: own for layer, own in left.items()}
        methods |= {layer.index: replace(own, layout=asked.layout) for layer, own in found.items()}
        sparsify(model, layers=methods, phase=sparse.phase, attention="all")  # type: ignore[arg-type]
        return [f"{layer.name} ({own})" for layer, own in left.items()]
    except OptionError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(str(error), "method") from error


def check_new(output: Path) -> None:
    """Raise OptionError unless the folder is empty or can be made."""
    check_replaced(output)
    if output.is_dir() and (there := sorted(each.name for each in output.iterdir())):
        raise OptionError(
            f"output {output} holds {', '.join(there[:NAMED])}; choose a new folder for the fitted model",
            "output",
        )


def _check(options: FitOptions) -> tuple[Method, Rule | None]:
    try:
        asked = parse(options.method)
        if not isinstance(asked.layout, Sparsefinder):
            raise ValueError(f"expected a layout sparsefinder, got {options.method!r}")
        if options.gold is None and not asked.rule.drops_nothing() and not asked.rule.zeros_are_dropped:
            raise ValueError(
                f"the rule of {options.method!r} would drop most of the pairs predicted for it once more; to attend to "
                f"all of them, give sparsefinder alone and --gold with the rule"
            )
    except (TypeError, ValueError) as error:
        raise OptionError(str(error), "method") from error
    try:
        gold = None if options.gold is None else parse(options.gold)
        if gold and gold != Method(rule=gold.rule):
            raise ValueError(f"expected a rule alone, such as topk:sparsity=0.8, got {options.gold!r}")
    except (TypeError, ValueError) as error:
        raise OptionError(str(error), "gold") from error
    for name, least in (("examples", 2), ("seed", 0)):
        try:
            check_whole(name, getattr(options, name), least)
        except ValueError as error:
            raise OptionError(str(error), name) from error
    check_new(options.output)
    return asked, None if gold is None else gold.rule


def _print(found: Fit, options: FitOptions) -> None:
    console = table_console()
    table = Table(
        "layer", title="Predicted pairs, means over heads, on examples held out", box=box.SIMPLE_HEAD
    )
    for heading in SCORES.values():
        table.add_column(heading, justify="right")
    for layer, means in found.table().groupby("layer")[[*SCORES]].mean().iterrows():
        table.add_row(str(layer), *(f"{means[name]:.1%}" for name in SCORES))
    console.print(table)
    for line in (
        f"the model is in {options.output}: crisp.load({str(options.output)!r}), or --model {options.output}",
        f"the scores of every head are in {options.output / 'sparsefinder.csv'}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
