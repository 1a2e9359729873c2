"""The tables of pruned layers and models in docs/performance.md, from what `crisp bench --parts pruning` left.

python -m benchmarks.pruning_bench_table
"""

import json
from pathlib import Path
from typing import Any

from crisp_attention.bench.bars import PRUNED

KEPT = Path(__file__).parents[1] / "docs" / "studies" / "bench" / "pruning.json"
Row = dict[str, Any]


def tables() -> list[str]:
    """Layers, then models, in Markdown, with the bars."""
    found: list[Row] = json.loads(KEPT.read_text())["pruned"]
    layers = [each for each in found if each["saved_bytes"] is None]
    models = [each for each in found if each["saved_bytes"] is not None]
    return [
        "| layer | pattern | zeros | 512 rows | 1 row | bytes |",
        "|---|---|---|---|---|---|",
        *(_layer(each, layers) for each in layers if each["size"] == "512"),
        "",
        "| model | pattern | tokens | zeros | dense, ms | time | pruned layers' bytes | file |",
        "|---|---|---|---|---|---|---|---|",
        *(_model(each) for each in models),
    ]


def _layer(several: Row, layers: list[Row]) -> str:
    same = ("subject", "pattern", "target")
    one = [e for e in layers if e["size"] == "1" and all(e[name] == several[name] for name in same)]
    cells = [_barred(_time(several), several, 0), *(_barred(_time(each), each, 0) for each in one)]
    cells += ["–"] * (not one) + [_barred(several["layer_bytes"], several, 1)]
    return (
        f"| {several['subject']} | {several['pattern']} | {several['sparsity']:.0%} | {' | '.join(cells)} |"
    )


def _model(each: Row) -> str:
    cells = [f"{each['sparsity']:.0%}", f"{1000 * each['timed'][0]['seconds']['median']:.0f}"]
    ratios = _time(each), each["layer_bytes"], each["saved_bytes"]
    cells += [_barred(ratio, each, number) for number, ratio in enumerate(ratios)]
    return f"| {each['subject']} | {each['pattern']} | {each['size']} | {' | '.join(cells)} |"


def _time(each: Row) -> float:
    median: float = each["timed"][1]["ratio"]["median"]
    return median


def _barred(ratio: float, each: Row, number: int) -> str:
    bar = PRUNED.get((each["subject"], each["size"], each["pattern"], each["target"]), (None,) * 3)[number]
    return f"{ratio:.2f}" if bar is None else f"{ratio:.3f} (bar {bar:g})"


if __name__ == "__main__":
    print(*tables(), sep="\n")
