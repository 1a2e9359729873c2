"""The page of a run: its bars, pictures and numbers, in one file."""

import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crisp_attention.bench.bar_picture import draw_bars
from crisp_attention.bench.bars import MEMORY, MEMORY_LENGTH, bar_of
from crisp_attention.bench.contender import CRISP, DENSE
from crisp_attention.bench.picture import figure_of
from crisp_attention.bench.results import Attention, Memory, Results, Situated
from crisp_attention.bench.summary import counted, judged
from crisp_attention.drawing.svg import drawn, inline
from crisp_attention.studies.report.figures import Picture
from crisp_attention.studies.report.templates import render
from crisp_attention.studies.report.writing import write

WAYS = {False: "forward", True: "forward + backward"}


def write_page(results: Results, output: Path) -> None:
    """Write bench.html into the folder, in place of an earlier one."""
    bars = judged(results)
    page = render(
        "bench.html",
        package="crisp_attention.bench",
        facts=_facts(results),
        command=shlex.join(["crisp", *results.command[1:]]),
        answer=counted(bars),
        bars=bars,
        pictures=[
            each._asdict() | {"svg": Markup(inline(each.svg, f"{each.title}. {each.caption}"))}
            for each in _pictures(results)
        ],
        attention=[_of_attention(each) for each in results.attention],
        situated=[_of_situation(each) for each in results.situated],
        memory=[_of_memory(each) for each in results.memory],
    )
    write(output / "bench.html", page)


def _facts(results: Results) -> dict[str, str]:
    found = results.machine
    return {
        "processor": found.get("gpu") or found["processor"],
        "threads": str(found["threads"]),
        **{
            name: version
            for name, version in found["versions"].items()
            if version and name in ("torch", "numba")
        },
    }


def _pictures(results: Results) -> list[Picture]:
    found, bars = list[Picture](), judged(results)
    if any(each.share is not None for each in bars):
        found.append(
            Picture(
                "bars",
                "How much of each bar was used",
                "A bar holds left of the line and is missed right of it; the worst at the top.",
                drawn(draw_bars(bars), "bars"),
                wide=False,
            )
        )
    if results.attention:
        caption = (
            "Attention alone: ours, its peers and the limit of arithmetic, in milliseconds for each sequence."
        )
        found.append(
            Picture(
                "lengths", "Time against length", caption, drawn(figure_of(results), "lengths"), wide=True
            )
        )
    return found


def _of_attention(each: Attention) -> dict[str, Any]:
    timed = {one.name: one for one in each.timed}
    others = {name: one.ratio.median for name, one in timed.items() if name not in (DENSE, CRISP)}
    return {
        "method": each.method,
        "way": WAYS[each.backward],
        "size": f"{each.shape['length']:,} × {each.shape['batch']}",
        "dense": 1000 * timed[DENSE].seconds.median,
        "ratio": timed[CRISP].ratio if CRISP in timed else None,
        "others": ", ".join(f"{name} {value:.3g}" for name, value in others.items()),
        "sparsity": each.achieved_sparsity,
    }


def _of_situation(each: Situated) -> dict[str, Any]:
    yardstick = each.yardstick
    return {
        "part": each.part,
        "row": each.row,
        "size": each.size,
        "way": WAYS[each.backward],
        "yardstick": yardstick.name if yardstick else "–",
        "milliseconds": 1000 * yardstick.seconds.median if yardstick else None,
        "ratio": each.ratio,
        "bar": bar_of(each),
        "absent": "; ".join(one.reason for one in each.absent),
    }


def _of_memory(each: Memory) -> dict[str, Any]:
    dense, ours = (each.peak_bytes.get(name) for name in (DENSE, CRISP))
    return {
        "method": each.method + ", causal" * each.shape["causal"],
        "way": WAYS[each.backward],
        "length": each.shape["length"],
        "dense": None if dense is None else dense / 2**20,
        "ours": None if ours is None else ours / 2**20,
        "ratio": each.ratio,
        "bar": MEMORY if each.shape["length"] == MEMORY_LENGTH else None,
        "absent": "; ".join(one.reason for one in each.absent),
    }
