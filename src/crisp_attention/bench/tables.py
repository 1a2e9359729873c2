"""Tables of what was measured."""

from rich import box
from rich.table import Table

from crisp_attention.bench.bars import (
    HOOKS,
    HOOKS_PER_CALL,
    MEMORY,
    MEMORY_LENGTH,
    PREDICTED,
    bar_of,
    bars_of,
    crisp_ratio,
    predicted_ratios,
)
from crisp_attention.bench.contender import CRISP, DENSE
from crisp_attention.bench.hooked import GPT
from crisp_attention.bench.predicted import ALL, COMPARING, LISTING
from crisp_attention.bench.results import Attention, Hooked, Predicted, Pruned, Results, Situated
from crisp_attention.bench.summary import Judged, counted


def bars(found: list[Judged]) -> Table:
    """What was measured, its bar, and how far it is from it: the worst first."""
    table = _table(f"the project's bars (largest ratios allowed): {counted(found)}", "case")
    table.add_column("of")
    for heading in ("measured", "bar", "of the bar"):
        table.add_column(heading, justify="right")
    table.add_column("")
    colours = {"missed": "red", "holds": "green"}
    for each in found:
        colour = colours.get(each.word, "dim")
        share = "–" if each.share is None else f"{each.share:.0%}"
        table.add_row(
            each.case, each.of, ratio(each.found), f"{each.bar:g}", share, f"[{colour}]{each.word}[/]"
        )
    return table


def situated(found: list[Situated]) -> Table:
    """Situations of a part: ratios to the yardstick, forward and with the backward pass, with their bars."""
    table = _table(f"{found[0].part}: time as a ratio to its yardstick, with the bars", "")
    for heading in ("size", "yardstick", "ms", "forward", "and backward"):
        table.add_column(heading, justify="left" if heading == "yardstick" else "right")
    for row, size in dict.fromkeys((each.row, each.size) for each in found):
        ways = {each.backward: each for each in found if (each.row, each.size) == (row, size)}
        yardstick = next((each.yardstick for each in ways.values() if each.yardstick), None)
        shown = (yardstick.name, f"{1000 * yardstick.seconds.median:.3g}") if yardstick else ("–", "–")
        cells = (_barred(each.ratio, bar_of(each)) for each in ways.values())
        table.add_row(row, size, *shown, *cells)
    return table


def attention(cells: list[Attention]) -> Table:
    """One method in one direction: a column for each length, a row for each contender, quartiles below medians."""
    direction = "forward + backward" if cells[0].backward else "forward"
    table = _table(f"{cells[0].name}, {direction}: time as a ratio to dense SDPA", "tokens")
    for each in cells:
        batch = each.shape["batch"]
        table.add_column(f"{each.shape['length']:,}" + (f"\n× {batch}" if batch > 1 else ""), justify="right")
    names = dict.fromkeys(
        [DENSE, CRISP, *(timed.name for each in cells for timed in each.timed)]
        + [absent.name for each in cells for absent in each.absent]
    )
    for name in names:
        found = [next((t for t in each.timed if t.name == name), None) for each in cells]
        if name == DENSE:
            table.add_row(f"{DENSE}, ms", *(f"{1000 * t.seconds.median:.3g}" if t else "–" for t in found))
        else:
            table.add_row(
                name,
                *(
                    f"{ratio(t.ratio.median)}\n[dim]{ratio(t.ratio.low)}–{ratio(t.ratio.high)}[/]"
                    if t
                    else "–"
                    for t in found
                ),
            )
    table.add_row("limit", *(ratio(limit_ratio(each)) for each in cells))
    table.add_row("sparsity", *(f"{each.achieved_sparsity:.0%}" for each in cells))
    return table


def steps(results: Results) -> Table:
    """Whole fine-tuning steps."""
    first = results.step[0]
    table = _table(
        f"fine-tuning step of {first.model}, {first.method}: ratio to dense SDPA", "tokens × batch"
    )
    for heading in ("dense SDPA, ms", "ratio", "quartiles"):
        table.add_column(heading, justify="right")
    for each in results.step:
        dense, ours = (next((t for t in each.timed if t.name == name), None) for name in (DENSE, CRISP))
        table.add_row(
            f"{each.length:,} × {each.batch}",
            f"{1000 * dense.seconds.median:.0f}" if dense else "–",
            ratio(crisp_ratio(each)),
            f"{ratio(ours.ratio.low)}–{ratio(ours.ratio.high)}" if ours else "–",
        )
    return table


def memory(results: Results) -> Table:
    """Peak memory in addition to the inputs: a row for each method at each length."""
    table = _table("peak memory on top of the inputs: dense in MiB, ours as a ratio to it", "tokens")
    table.add_column("method")
    for heading in ("dense,\nforward", "ratio", "dense,\nand backward", "ratio"):
        table.add_column(heading, justify="right")
    rows = dict.fromkeys((each.method, each.shape["length"], each.shape["causal"]) for each in results.memory)
    for method, length, causal in rows:
        cells = []
        for each in results.memory:
            if (each.method, each.shape["length"], each.shape["causal"]) == (method, length, causal):
                dense = each.peak_bytes.get(DENSE)
                most = MEMORY if length == MEMORY_LENGTH else None
                cells += ["–" if dense is None else f"{dense / 2**20:,.0f}", _barred(each.ratio, most) or "–"]
        table.add_row(f"{length:,}", f"{method}{', causal' * causal}", *cells)
    return table


def first_calls(results: Results) -> Table:
    """What the first calls in a fresh process take."""
    table = _table(
        "first calls in a fresh process, 512 tokens, seconds (compilers' caches on disk)", "method"
    )
    for state in ("empty", "filled"):
        for heading in ("forward", "backward"):
            table.add_column(f"{state}:\n{heading}", justify="right")
    table.add_column("later", justify="right")
    for each in results.first_call:
        taken = [
            each.seconds.get(state, {}).get(way)
            for state in ("empty", "filled")
            for way in ("forward", "backward")
        ]
        later = each.seconds.get("filled", {}).get("later")
        cells = ["–" if t is None else f"{t:.3g}" for t in (*taken, later)]
        table.add_row(each.method, *cells)
    return table


def hooked(found: list[Hooked]) -> Table:
    """What hooks and a mode add to a forward pass of one attention module."""
    table = _table(
        "reaching the attention of any model: what hooks add to a forward pass of one module, µs", ""
    )
    for heading in ("torch calls", "added", "per call", "compiled", "of a step"):
        table.add_column(heading, justify="right")
    for each in found:
        if each.seconds is None:
            continue
        added, per_call = each.seconds.median, each.seconds.median / each.calls
        by_hand = each.model == GPT
        table.add_row(
            f"{each.model}: {each.module}",
            str(each.calls),
            _limited(f"{1e6 * added:.1f}", not by_hand or added <= HOOKS),
            _limited(f"{1e6 * per_call:.2f}", by_hand or per_call <= HOOKS_PER_CALL),
            f"{1e6 * each.compiled_seconds.median:.1f}" if each.compiled_seconds else "–",
            f"{each.step_share:.2%}",
        )
    table.add_section()
    table.add_row("bar: by hand, diffusers", "", f"{1e6 * HOOKS:g}", f"{1e6 * HOOKS_PER_CALL:g}", "0", "")
    return table


def predicted(found: list[Predicted]) -> Table:
    """Attention between predicted blocks: its quality and its time, as ratios of medians of rounds."""
    first = found[0]
    heads, width = first.shape["heads"], first.shape["width"]
    table = _table(
        f"predicted blocks with entmax 1.5, forward: layer {first.layer} of {first.model}, {heads} heads of {width}",
        "tokens",
    )
    for heading in ("block", "sparsity", "kept mass", "all, ms", *PREDICTED):
        table.add_column(heading, justify="right")
    for each in found:
        whole = next(timed for timed in each.timed if timed.name == ALL)
        ratios = predicted_ratios(each)
        table.add_row(
            f"{each.shape['length']:,}",
            str(each.block_size),
            f"{each.scores['sparsity']:.0%}",
            f"{each.scores['kept_mass']:.0%}",
            f"{1000 * whole.seconds.median:.3g}",
            *(_within(ratios[name], most) for name, most in PREDICTED.items()),
        )
    table.add_section()
    table.add_row("bar", *[""] * 4, *(f"{most:g}" for most in PREDICTED.values()))
    return table


def pruned_layers(found: list[Pruned]) -> Table:
    """Layers with pruned weights: time and bytes as ratios to dense, with the bars."""
    table = _table("pruned layers, forward, float32: compressed as a ratio to nn.Linear, with the bars", "of")
    for heading in ("rows", "pattern"):
        table.add_column(heading)
    for heading in ("zeros", "dense, ms", "time", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        most_time, most_layer, _ = bars_of(each)
        times, bytes_ = _times(each, most_time), _barred(each.layer_bytes, most_layer)
        table.add_row(each.subject, each.size, each.pattern, *times, bytes_)
    return table


def pruned_models(found: list[Pruned]) -> Table:
    """The same of models, with the bytes of their pruned layers in memory and in the file, and of the file."""
    table = _table(
        "pruned models, float32: compressed as a ratio to nn.Linear and dense SDPA, with the bars", "of"
    )
    table.add_column("tokens", no_wrap=True)
    for heading in ("zeros", "dense,\nms", "time", "layers'\nbytes", "in the\nfile", "whole\nfile"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        most_time, most_layer, most_file = bars_of(each)
        ratios = (
            (each.layer_bytes, most_layer),
            (each.saved_layer_bytes, most_layer),
            (each.saved_bytes, most_file),
        )
        cells = (_barred(value, most) for value, most in ratios)
        subject = f"{each.subject}\n[dim]{each.pattern}[/]"
        table.add_row(subject, each.size, *_times(each, most_time), *cells)
    return table


def _times(each: Pruned, most: float | None) -> tuple[str, str, str]:
    times = {timed.name: timed for timed in each.timed}
    dense, own = f"{1000 * times[DENSE].seconds.median:.3g}", times[CRISP].ratio.median
    return f"{each.sparsity:.0%}", dense, _barred(own, most)


def _barred(value: float | None, most: float | None) -> str:
    """A ratio, and its bar below if it has one."""
    if value is None or most is None:
        return "" if value is None else f"{value:.3f}"
    return _limited(f"{value:.3f}", value <= most) + f"\n[dim]≤ {most:g}[/]"


def _within(value: float | None, most: float) -> str:
    if value is None:
        return "–"
    return _limited(f"{value:.3f}", value <= most)


def _limited(text: str, holds: bool) -> str:
    return text if holds else f"[red]{text}[/]"


def listed(results: Results) -> Table:
    """Listing predicted pairs against comparing all."""
    table = _table(
        "listing the pairs that are predicted, groups of one size: milliseconds for 12 heads", "tokens"
    )
    for heading in ("variant", "pairs per head", "of all", LISTING, COMPARING):
        table.add_column(heading, justify="right")
    for each in results.listed:
        compared = each.seconds.get(COMPARING)
        table.add_row(
            f"{each.length:,}",
            each.variant,
            f"{each.pairs_per_head:,.0f}",
            f"{each.share:.1%}",
            f"{1000 * each.seconds[LISTING]:,.0f}",
            "–" if compared is None else f"{1000 * compared:,.0f}",
        )
    return table


def limit_ratio(each: Attention) -> float:
    """The physical limit as a ratio to dense SDPA's time."""
    return each.limit_seconds / next(t.seconds.median for t in each.timed if t.name == DENSE)


def ratio(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _table(title: str, first: str) -> Table:
    return Table(first, box=box.SIMPLE_HEAD, title=title)
