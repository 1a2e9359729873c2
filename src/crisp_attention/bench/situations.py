"""The situations of the parts `decoders`, `generation`, `padded` and `rows`."""

from collections.abc import Iterator
from typing import Any

from crisp_attention.bench.methods import named
from crisp_attention.bench.options import Part
from crisp_attention.bench.row_kinds import KINDS, NORMAL, TRAINED, Kind
from crisp_attention.bench.situation import Situation
from crisp_attention.methods.layouts import BlockTopK, Window
from crisp_attention.methods.method import AnyMethod, as_method
from crisp_attention.methods.rules import Dense, Entmax, NofM, RandomK, TopK

PARTS: tuple[Part, ...] = ("decoders", "generation", "padded", "rows")
SPARSITY = 0.8
TOPK, BLOCKS = TopK(SPARSITY), BlockTopK(SPARSITY)
ODD_WIDTHS = (8, 40, 72)
ROW_LENGTH, ROW_WIDTH = 1024, {TRAINED: 32}  # the width of MiniLM's heads
CACHES = (128, 512, 2048)
QUICK = {
    ("padded batch, top-k", "128 × 32"),
    ("one token, top-k", "after 512"),
    ("one token, blocks", "after 512"),
    ("N:M 2:4", "512"),
    ("width 8", "512"),
}


def planned(part: Part, quick: bool) -> list[Situation]:
    """Those of a part, few of them if `quick`."""
    every = {"decoders": _decoders, "generation": _one_token, "padded": _padded, "rows": _rows}
    return [each for each in every[part]() if not quick or (each.row, each.size) in QUICK]


def _at(part: str, row: str, method: AnyMethod, *lengths: int, **more: Any) -> Iterator[Situation]:
    for length in lengths:
        yield Situation(part, row, f"{length:,}", as_method(method), length, **more)


def _decoders() -> Iterator[Situation]:
    yield from _at("decoders", "window 129", Window(129), 2048)
    grouped = {"heads": 32, "groups": 8, "mask": "causal"}
    yield from _at("decoders", "window 257, causal, heads 32/8", Window(257), 1024, 2048, **grouped)
    yield from _at("decoders", "blocks, causal", BLOCKS, 1024, 2048, mask="causal")
    yield from _at("decoders", "top-k, causal mask", TOPK, 2048, mask="triangle")
    yield from _at(
        "decoders", "top-k, causal mask and padding", TOPK, 2048, mask="triangle and padding", batch=2
    )


def _one_token() -> Iterator[Situation]:
    for row, method in (("one token, top-k", TOPK), ("one token, blocks", BLOCKS)):
        for keys in CACHES:
            size = f"after {keys:,}"
            yield Situation("generation", row, size, as_method(method), 1, keys, gradients=False)


def _padded() -> Iterator[Situation]:
    for row, method in (("padded batch, top-k", TOPK), ("padded batch, blocks", BLOCKS)):
        yield Situation("padded", row, "128 × 32", as_method(method), 128, batch=32, mask="padding")


def _rows() -> Iterator[Situation]:
    yield from _at("rows", "dense", Dense(), 2048)
    yield from _at("rows", "top-k 0 %", TopK(0.0), 2048)
    yield from _at("rows", "top-k 50 %", TopK(0.5), 2048)
    yield from _at("rows", "random 80 %", RandomK(SPARSITY), 512, 1024)
    yield from _at("rows", "entmax 1.25", Entmax(1.25), 512, 1024)
    yield from _at("rows", "entmax, learned", Entmax("learned"), 512, 1024)
    for n, m in ((2, 4), (8, 64), (64, 256)):
        yield from _at("rows", f"N:M {n}:{m}", NofM(n, m), 512)
    yield from _at("rows", "top-p", named("topp", SPARSITY, 2048), 2048)
    for width in ODD_WIDTHS:
        yield from _at("rows", f"width {width}", TOPK, 512, width=width, yardstick="wider")
    yield from _at("rows", "width 256", TOPK, 2048, width=256)
    yield from _at("rows", "long top-k", TOPK, 8192, 16384)
    for kind in KINDS:
        yield from _of_kind(kind)


def _of_kind(kind: Kind) -> Iterator[Situation]:
    assert kind != NORMAL
    for name, method in (("top-k", TOPK), ("top-p", named("topp", SPARSITY, ROW_LENGTH))):
        more: dict[str, Any] = {"rows": kind, "yardstick": "normal", "width": ROW_WIDTH.get(kind, 64)}
        yield from _at("rows", f"{name}, {kind}", method, ROW_LENGTH, **more)
