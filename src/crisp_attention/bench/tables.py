"""Tables of what was measured, and the project's bars: the largest ratio to dense attention allowed for each case."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crisp_attention.bench.contender import CRISP, DENSE, Absent
from crisp_attention.bench.results import Attention, Memory, Results, Step

CPU = {"heads": 12, "width": 64, "dtype": "float32", "device": "cpu"}
GPU = {"heads": 16, "width": 128, "dtype": "bfloat16", "device": "cuda"}
Batches = dict[int, int]  # length -> batch


@dataclass(frozen=True)
class Bar:
    """A row: the method of a part, the batch at each length, and the bars, None where there is none."""

    name: str
    part: Literal["attention", "step", "memory"]
    method: str
    sizes: Batches
    forward: float | None
    backward: float
    shape: dict[str, object]


@dataclass(frozen=True)
class Verdict:
    """The worst ratio over a row's lengths and where it was; `holds` is None if some were not measured."""

    bar: float
    worst: float | None
    length: int | None
    missing: tuple[int, ...]

    @property
    def holds(self) -> bool | None:
        """Whether all lengths are within the bar."""
        if self.worst is not None and self.worst > self.bar:
            return False
        return None if self.missing else True


def _alone(*lengths: int) -> Batches:
    return dict.fromkeys(lengths, 1)


BARS = (
    Bar("top-k, L 64, 128, B 32", "attention", "topk:sparsity=0.8", {64: 32, 128: 32}, 1.2, 1.0, CPU),
    Bar(
        "top-k, L 512 … 4,096",
        "attention",
        "topk:sparsity=0.8",
        _alone(512, 1024, 2048, 4096),
        1.2,
        1.0,
        CPU,
    ),
    Bar(
        "block top-k, L 2,048 … 8,192",
        "attention",
        "block_topk:sparsity=0.8",
        _alone(2048, 4096, 8192),
        0.28,
        0.28,
        CPU,
    ),
    Bar(
        "entmax 1.5, L 512 … 4,096",
        "attention",
        "entmax:alpha=1.5",
        _alone(512, 1024, 2048, 4096),
        1.5,
        1.2,
        CPU,
    ),
    Bar(
        "MiniLM step, L 16 … 128, B 32",
        "step",
        "topk:sparsity=0.8",
        dict.fromkeys((16, 32, 64, 128), 32),
        None,
        1.05,
        CPU,
    ),
    Bar("memory, top-k, L 16,384", "memory", "topk:sparsity=0.8", _alone(16384), 1.2, 1.2, CPU),
    Bar(
        "GPU, block top-k, L 32,768",
        "attention",
        "block_topk:sparsity=0.8",
        _alone(32768),
        0.25,
        0.28,
        GPU,
    ),
    Bar(
        "GPU, top-k, L 4,096 … 16,384",
        "attention",
        "topk:sparsity=0.8",
        _alone(4096, 8192, 16384),
        2.0,
        1.5,
        GPU,
    ),
)


def verdict(bar: Bar, results: Results, backward: bool) -> Verdict | None:
    """The verdict on a bar in one direction, None if it has none there."""
    allowed = bar.backward if backward else bar.forward
    if allowed is None:
        return None
    ratios = _ratios(bar, results, backward)
    worst = max(ratios, key=ratios.__getitem__, default=None)
    missing = tuple(length for length in bar.sizes if length not in ratios)
    return Verdict(allowed, None if worst is None else ratios[worst], worst, missing)


def _ratios(bar: Bar, results: Results, backward: bool) -> dict[int, float]:
    """Our ratio at each of the bar's lengths that was measured as the bar says."""
    if bar.part == "step":
        known = [
            (
                each.length,
                each.batch,
                {"dtype": each.dtype, "device": each.device},
                each.method,
                crisp_ratio(each),
            )
            for each in results.step
        ]
    else:
        cells = results.attention if bar.part == "attention" else results.memory
        known = [
            (
                each.shape["length"],
                each.shape["batch"],
                each.shape,
                each.method,
                each.ratio if isinstance(each, Memory) else crisp_ratio(each),
            )
            for each in cells
            if each.backward == backward
        ]
    return {
        length: ratio
        for length, batch, shape, method, ratio in known
        if method == bar.method
        and bar.sizes.get(length) == batch
        and ratio is not None
        and all(shape[name] == value for name, value in bar.shape.items() if name in shape)
    }


def crisp_ratio(cell: Attention | Step) -> float | None:
    """The median ratio of our own contender, None if it was not timed."""
    return next((timed.ratio.median for timed in cell.timed if timed.name == CRISP), None)


MOST = 5  # lengths side by side, in 80 columns


def show(results: Results, console: Console) -> None:
    """Print the bars and everything that was measured, with what is missing and why."""
    for name in dict.fromkeys(each.name for each in results.attention):
        for backward in (False, True):
            cells = [each for each in results.attention if (each.name, each.backward) == (name, backward)]
            for first in range(0, len(cells), MOST):
                _print(console, attention(cells[first : first + MOST]))
            _missing(console, ((f"{each.shape['length']:,}", each.absent) for each in cells))
    if results.step:
        _print(console, steps(results))
        _missing(console, ((f"{each.length:,}", each.absent) for each in results.step))
    if results.memory:
        _print(console, memory(results))
        _missing(
            console, (("forward + backward" if m.backward else "forward", m.absent) for m in results.memory)
        )
    if results.first_call:
        _print(console, first_calls(results))
        _missing(console, ((each.method, each.absent) for each in results.first_call))
    if (table := bars(results)).row_count:
        _print(console, table)


def bars(results: Results) -> Table:
    """The worst ratio of each of the project's bars that the run touched, its bar, and whether it holds."""
    table = _table(
        "the project's bars: largest ratio to dense SDPA allowed; measured, at the worst length",
        "case",
    )
    for heading in ("forward", "bar", "and backward", "bar"):
        table.add_column(heading, justify="right")
    for bar in BARS:
        found = [verdict(bar, results, backward) for backward in (False, True)]
        if any(each is not None and each.worst is not None for each in found):
            table.add_row(bar.name, *(cell for each in found for cell in _judged(each)))
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
    """Peak memory in addition to the inputs."""
    first = results.memory[0]
    title = f"peak memory on top of the inputs, {first.method}, {first.shape['length']:,} tokens, MiB"
    table = _table(title, "")
    for heading in (DENSE, CRISP, "ratio"):
        table.add_column(heading, justify="right")
    for each in results.memory:
        peaks = [each.peak_bytes.get(name) for name in (DENSE, CRISP)]
        table.add_row(
            "forward + backward" if each.backward else "forward",
            *("–" if peak is None else f"{peak / 2**20:,.0f}" for peak in peaks),
            ratio(each.ratio),
        )
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


def limit_ratio(each: Attention) -> float:
    """The physical limit as a ratio to dense SDPA's time."""
    return each.limit_seconds / next(t.seconds.median for t in each.timed if t.name == DENSE)


def ratio(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _judged(found: Verdict | None) -> list[str]:
    if found is None:
        return ["", ""]
    word = {True: "[green]holds[/]", False: "[red]missed[/]", None: "partly"}[found.holds]
    if found.worst is None:
        return ["not measured", f"≤ {found.bar:.2f}"]
    return [f"{ratio(found.worst)} at {found.length:,}", f"≤ {found.bar:.2f} {word}"]


def _table(title: str, first: str) -> Table:
    return Table(first, box=box.SIMPLE_HEAD, title=title)


def _print(console: Console, table: Table) -> None:
    """The title on a line of its own: rich would break it to the table's width."""
    console.print(f"[bold]{table.title}[/]", highlight=False, soft_wrap=True)
    table.title = None
    console.print(table)


def _missing(console: Console, found: Iterable[tuple[str, list[Absent]]]) -> None:
    """A line for each reason why a contender is missing, and where, unless it is missing everywhere."""
    where: dict[tuple[str, str], list[str]] = {}
    for place, absent in (cells := list(found)):
        for each in absent:
            where.setdefault((each.name, each.reason), []).append(place)
    for (name, reason), places in where.items():
        at = f" not at {'; '.join(places)}" if len(places) < len(cells) else ""
        line = f"  [bold]{escape(name)}[/]{at}: {escape(reason)}"
        console.print(line, highlight=False, soft_wrap=True)
