"""The contract table: one row puts a method through every contract test."""

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from crisp_attention import BlockTopK, Dense, Entmax, Method, NofM, RandomK, Threshold, TopK, TopP, Window
from crisp_attention.methods.method import AnyMethod
from tests.contract.families import available

# `make test` runs every method on these, and these methods on every family; `make test-all` the rest
CORE_FAMILIES = {"bert", "modernbert", "llama", "gemma2", "gpt_oss", "vit", "wav2vec2", "bart", "t5"}
CORE_METHODS = {"topk", "block_topk+entmax"}


@dataclass(frozen=True)
class Row:
    """A method, and the same method with nothing dropped, which must be the model's own attention."""

    method: AnyMethod
    dense: AnyMethod
    cross: bool = True  # works without positions, so in cross-attention too


ROWS = {
    "dense": Row(Dense(), dense=Dense()),
    "topk": Row(TopK(0.6), dense=TopK(0.0)),
    "topk, absolute": Row(TopK(keep=2), dense=TopK(keep=10**6)),
    "topk, sharper": Row(TopK(0.6, temperature=4), dense=TopK(0.0)),
    "topk, learned temperature": Row(TopK(0.6, temperature="learned"), dense=Dense()),
    "topp": Row(TopP(0.6), dense=TopP(1.0)),
    "threshold": Row(Threshold(0.6), dense=Threshold(0.0)),
    "nofm": Row(NofM(1, 3), dense=NofM(3, 3)),
    "entmax 1.5": Row(Entmax(1.5), dense=Entmax(1.0)),
    "sparsemax": Row(Entmax(2), dense=Entmax(1)),
    "entmax 1.7": Row(Entmax(1.7), dense=Entmax(1.0)),
    "entmax, learned": Row(Entmax("learned"), dense=Entmax(1.0)),
    "random": Row(RandomK(0.6), dense=RandomK(0.0), cross=False),
    "window": Row(Window(3, global_tokens=1), dense=Window(999), cross=False),
    "window, dilated": Row(Window(5, dilation=2), dense=Window(999, dilation=1), cross=False),
    "window+topk": Row(Method(Window(5), TopK(0.5)), dense=Method(Window(999), TopK(0.0)), cross=False),
    "block_topk": Row(BlockTopK(0.6, block_size=2), dense=BlockTopK(0.0, block_size=2), cross=False),
    "block_topk+entmax": Row(
        Method(BlockTopK(0.6, block_size=2, sink_blocks=1), Entmax()),
        dense=Method(BlockTopK(0.0), Entmax(1.0)),
        cross=False,
    ),
}


def pairs(names: Iterable[str], core: set[str]) -> pytest.MarkDecorator:
    """Parametrize `family` and `row`: every method on every family named, fast only where one is in the core."""
    return pytest.mark.parametrize(
        ("family", "row"),
        [
            pytest.param(
                family,
                row,
                id=f"{name}-{family.name}",
                marks=() if family.name in core or name in CORE_METHODS else pytest.mark.slow,
            )
            for family in available()
            if family.name in names
            for name, row in ROWS.items()
        ],
    )


every_pair = pairs([family.name for family in available()], CORE_FAMILIES)
