"""`crisp prune`: from flags to a run, the compressed model, and the report of what pruning saved."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from crisp_attention.cli.finetune import print_summary, run_as_asked
from crisp_attention.cli.options import run_values
from crisp_attention.cli.pruning_options import PruneOptions
from crisp_attention.errors import OptionError
from crisp_attention.methods.checks import check_number
from crisp_attention.methods.method import Method
from crisp_attention.methods.spec import parse
from crisp_attention.pruning.compressed import compress
from crisp_attention.runs.finetune import Run
from crisp_attention.runs.pruning import LEARNING_RATE
from crisp_attention.runs.pruning.pruned import Report
from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.runs.run_directory import COMPRESSED, LAYERS, RunDirectory
from crisp_attention.runs.spec import AnyMethod, Data, Recipe, RunSpec
from crisp_attention.runs.terminal import is_main, say, table_console

OWN = (
    *("attention", "feed_forward", "convolution", "pattern", "block_size", "steps", "shape"),
    *("saliency", "gradients", "examples", "normalised", "score_kept", "ste"),
)
DEFAULT_TARGET = 0.9


def run_prune(options: PruneOptions, console: Console) -> None:
    """Run it, compress the model, and print the results; raises as `carry_out` does."""
    spec = spec_of(options)
    run = run_as_asked(spec, options, console)
    print_summary(run, f"{run.metrics['achieved_sparsity']:.1%} of the weights of pruned layers are zero")
    if is_main() and not options.discard_model:
        for line in _reported(run, spec.treatment):
            say(table_console(), line)


def spec_of(options: PruneOptions) -> RunSpec:
    """The run that the options describe. Raises OptionError for values that do not fit together."""
    values = run_values(options)
    kinds = [values[name] for name in ("attention", "feed_forward", "convolution")]
    target = options.target
    if target is None and kinds == [None, None, None]:
        target = DEFAULT_TARGET
    if target is not None and kinds != [None, None, None]:
        raise OptionError(
            "target cannot be combined with attention, feed_forward or convolution, which set shares of their own",
            "target",
        )
    try:
        if target is not None:
            check_number("target", target, "[0, 1)")
        treatment = Pruning(sparsity=target, skip=options.skip, **{name: values[name] for name in OWN})
    except (TypeError, ValueError) as error:
        raise OptionError(str(error)) from error
    own = {"epochs": options.steps * options.epochs, "learning_rate": _learning_rate(options)}
    recipe = Recipe.from_dict(values | own)
    return RunSpec(
        model=options.model,
        data=Data.from_dict(values),
        method=_method(options.method),
        recipe=recipe,
        seed=options.seed,
        metric=options.metric,
        treatment=treatment,
    )


def _learning_rate(options: PruneOptions) -> float:
    if options.learning_rate is not None:
        return options.learning_rate
    before = RunDirectory(options.output)
    return before.spec().recipe.learning_rate if options.resume and before.config.is_file() else LEARNING_RATE


def _method(text: str | None) -> AnyMethod:
    try:
        return Method() if text is None else parse(text)
    except (TypeError, ValueError) as error:
        raise OptionError(f"method {text}: {error}", "method") from error


BLOCKS_ALONE = """
## Only with Crisp

Of most layers this folder holds only the weights that are not zero. `crisp.load` reads it, and so does transformers
after `import crisp_attention`; **without that, transformers takes random weights for these layers**, and says that the
quantization type `crisp_blocks` is unknown to it.
"""


def _reported(run: Run, treatment: Any) -> Iterator[str]:
    """What was saved: layer by layer in layers.csv, and a compressed model, where that is faster."""
    model: Any = run.model()
    before, after = run.metrics.get("before", {}), run.metrics["validation"]
    report = Report.of(model, treatment, before, after)
    report.layers.to_csv(run.directory / LAYERS, index=False)
    yield str(report)
    if (attention := run.metrics.get("attention")) is not None:
        yield (
            f"attention: {attention['achieved_sparsity']:.1%} of the pairs are dropped, "
            f"{attention['kept_mass']:.1%} of the mass is kept"
        )
    try:
        fast: Any = compress(model)
    except ValueError as error:
        yield f"not compressed: {error}"
        return
    folder = run.directory / COMPRESSED
    fast.save_pretrained(folder)
    for each in (run.directory / "model").iterdir():
        if each.name not in ("config.json", "README.md") and each.suffix != ".safetensors":
            shutil.copy(each, folder)
    card = (run.directory / "model" / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card + BLOCKS_ALONE, encoding="utf-8")
    dense, small = (_weights(each) / 1e6 for each in (run.directory / "model", folder))
    yield f"compressed model: {folder}, {small:.1f} MB of {dense:.1f} MB; crisp.load reads it"


def _weights(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.glob("*.safetensors"))
