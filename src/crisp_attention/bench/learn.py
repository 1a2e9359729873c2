"""`crisp bench --learn`: which kernel is the fastest on this machine, for calls of many kinds."""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from statistics import geometric_mean, median

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown
from torch import Tensor

from crisp_attention.bench.contender import calling
from crisp_attention.bench.rounds import Effort, clock_of, interleaved, warm_up
from crisp_attention.errors import first_line
from crisp_attention.kernels import dispatch, preference
from crisp_attention.kernels.blocks import with_blocks
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.preference import (
    REFERENCE,
    Kind,
    Measured,
    Table,
    device_name,
    kind_of,
    versions,
)
from crisp_attention.kernels.registry import FASTEST
from crisp_attention.methods.layouts import BlockTopK
from crisp_attention.methods.method import Method, as_method
from crisp_attention.methods.rules import Dense, TopK

HEADS = 8
# on GPUs few, as each may be compiled for, and torch does not compile a function for more than eight
WIDTHS = {"cpu": (32, 64, 128), "cuda": (64, 128)}
# queries and keys; a single query has a cache, and neither gradients nor a causal mask
SIZES = {
    "cpu": ((1, 128), (1, 2048), (16, 16), (128, 128), (1024, 1024)),
    "cuda": ((1, 128), (1, 2048), (128, 128), (1024, 1024), (4096, 4096)),
}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
# on GPUs of the size that FlexAttention compiles for without trying out others
BLOCKS = {"cpu": 64, "cuda": 128}
# the share of another kernel's time that is no chance
CLEARLY = 0.95
# of short calls many, as the machine may be busy with something else for longer than they take
EFFORT = Effort(rounds=300, seconds=0.2)


@dataclass(frozen=True)
class Example:
    """A call that stands for those of its kind."""

    method: Method
    queries: int
    keys: int
    width: int
    causal: bool
    gradients: bool

    def __str__(self) -> str:
        words = [f"{self.method}, {self.queries:,} x {self.keys:,} pairs, width {self.width}"]
        return ", ".join(words + ["causal"] * self.causal + ["with gradients"] * self.gradients)

    def call(self, device: str) -> Call:
        """The call, of normal numbers."""
        draw = torch.Generator().manual_seed(0)

        def normal(length: int) -> Tensor:
            states = torch.randn(1, HEADS, length, self.width, generator=draw)
            return states.to(device, DTYPES[device]).requires_grad_(self.gradients)

        states = normal(self.queries), normal(self.keys), normal(self.keys)
        return Call(*states, self.method, self.width**-0.5, causal=self.causal)


def planned(device: str) -> list[Example]:
    """What is measured: less than everything is kept except by `Dense`."""
    size = BLOCKS[device]
    methods = [as_method(each) for each in (Dense(), TopK(0.5), TopK(0.8), BlockTopK(0.8, size))]
    return [
        Example(method, queries, keys, width, causal, gradients)
        for method, (queries, keys), width, causal, gradients in product(
            methods, SIZES[device], WIDTHS[device], (False, True), (False, True)
        )
        if (queries > 1 or not (causal or gradients))
        and (method == methods[0] or not method.drops_nothing(keys))
    ]


def measured(device: str, told: Callable[[str], None]) -> Table:
    """Time all kernels that can compute each example; `told` is called with the next."""
    kinds = []
    for each in planned(device):
        told(str(each))
        if (found := _measured(each.call(device), device)) is not None:
            kinds.append(found)
    return Table(device_name(torch.device(device)), versions(), tuple(kinds))


def _measured(call: Call, device: str) -> Measured | None:
    if (kind := kind_of(chosen := with_blocks(call))) is None:
        return None
    able = [name for name in shipped(device) if dispatch.lacks(name, chosen) is None]
    if kind.pairs <= preference.FEW_PAIRS:
        able.append(REFERENCE)
    calls = {}
    for name in able:
        run = _run(call, name)
        try:
            warm_up(run)
        except (RuntimeError, NotImplementedError) as error:  # of someone else's compiler
            warnings.warn(f"{name} is left out, as it fails: {first_line(error)}", stacklevel=2)
        else:
            calls[name] = run
    times = interleaved(calls, EFFORT, clock_of(device)) if calls else {}
    # what else runs on the machine only adds to a time
    return Measured(kind, {name: min(times[name]) for name in _ranked(times)}) if times else None


def _ranked(times: dict[str, list[float]]) -> list[str]:
    """The kernels, given in the order that Crisp comes with: each moves before those that it is clearly faster than."""
    ranked: list[str] = []
    for name, taken in times.items():
        place = len(ranked)
        while place and _is_faster(taken, times[ranked[place - 1]]):
            place -= 1
        ranked.insert(place, name)
    return ranked


def _is_faster(taken: list[float], other: list[float]) -> bool:
    """Whether it is so by the shortest times as well as round by round; on a busy machine one alone may be chance."""
    ratios = [one / two for one, two in zip(taken, other, strict=True)]
    return max(median(ratios), min(taken) / min(other)) < CLEARLY


def _run(call: Call, kernel: str) -> Callable[[], object]:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch.attention(replace(call, query=query, key=key, value=value), kernel)[0]

    states = call.query, call.key, call.value
    return calling(attend, states, call.query.requires_grad, torch.ones_like(call.query))


def shipped(device: str) -> list[str]:
    """The kernels that `backend="auto"` takes on a device, in the order that Crisp comes with."""
    return [row.kernel for row in FASTEST if row.device == device]


def show(table: Table, device: str, console: Console) -> None:
    """Print which kernels became the fastest, and in how many kinds of calls these are others than before."""
    cells: dict[tuple[str, str], Counter[str]] = {}
    for each in table.kinds:
        cells.setdefault((_what(each.kind), _size(each.kind)), Counter())[each.order[0]] += 1
    sizes = list(dict.fromkeys(size for _, size in cells))
    shown = Shown(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    shown.add_column("queries", no_wrap=True)
    for size in sizes:
        shown.add_column(size)
    for what in dict.fromkeys(what for what, _ in cells):
        shown.add_row(what, *(_counted(cells.get((what, size), Counter())) for size in sizes))
    console.print(
        f"[bold]the fastest kernels on {escape(table.machine)}[/] (grad.: with gradients; numbers: of kinds of calls)",
        soft_wrap=True,
    )
    console.print(shown)
    gains = list(filter(None, (_gain(each, device) for each in table.kinds)))
    told = f"{len(gains)} of {len(table.kinds)} kinds of calls get another kernel than before"
    if gains:
        told += f", and take {geometric_mean(gains):.2f} of the time (geometric mean)"
    console.print(told, highlight=False, soft_wrap=True)


def _what(kind: Kind) -> str:
    share = "" if kind.form == "dense" else f" {kind.density:.0%}"
    return f"{kind.form}{share}{', grad.' * kind.gradients}"


def _size(kind: Kind) -> str:
    return f"1 of {kind.pairs // HEADS:,}" if kind.queries == 1 else f"{kind.queries:,}"


def _counted(kernels: Counter[str]) -> str:
    """Their names, with the numbers where they are several."""
    if len(kernels) == 1:
        return next(iter(kernels))
    return "\n".join(f"{name} {count}" for name, count in kernels.most_common())


def _gain(each: Measured, device: str) -> float | None:
    """The fastest kernel's time as a share of that of the one taken before; None where they are the same."""
    before = next((name for name in shipped(device) if name in each.seconds), REFERENCE)
    return None if each.order[0] == before else each.seconds[each.order[0]] / each.seconds[before]
