"""The part `sparsefinder`: attention between predicted blocks, on queries and keys of a trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from crisp_attention.bench.contender import Absent, Call, UnavailableError
from crisp_attention.bench.peers import ENTMAX, installed
from crisp_attention.bench.results import Listed, Predicted
from crisp_attention.bench.rounds import Effort, clock_of, compared, interleaved, warm_up
from crisp_attention.errors import OptionError
from crisp_attention.insight.graphs import FullGraph, gold_of
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.blocks import with_blocks
from crisp_attention.kernels.call import Call as Attention
from crisp_attention.methods.layouts import Sparsefinder
from crisp_attention.methods.layouts.sparsefinder.fitting import Finder
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows
from crisp_attention.methods.rules import Entmax
from crisp_attention.runs.sources import minilm_folder, read_tokenizer

MODEL, LAYER = "builtin:minilm", 3
TOKENS = 512  # of a text
TOGETHER = HELD_OUT = 8  # texts that the model reads at a time
RULE = Entmax(1.5)
OURS, ALL, PREDICTING = "crisp, predicted blocks", "crisp, all pairs", "predicting alone"
# by whether the measurement is quick
FITTED = {False: 96, True: TOGETHER}
CLUSTERS: dict[bool, Sequence[int]] = {False: range(2, 33), True: (4, 8, 12, 16)}
BLOCKS: dict[bool, tuple[int, ...]] = {False: (16, 32, 64), True: (32,)}
LENGTHS: dict[bool, tuple[int, ...]] = {False: (2048, 4096), True: (2048,)}
LISTED: dict[bool, tuple[int, ...]] = {False: (1024, 2048, 4096, 8192, 16384), True: (1024, 4096)}
LISTING, COMPARING = "listed", "all pairs compared"
GROUP, BUCKET = 128, 16  # tokens in a cluster, about, and in a bucket
MOST_COMPARED = 4096  # tokens, beyond which all pairs are not compared


@dataclass(frozen=True)
class States:
    """Queries, keys and values of one layer for texts of 512 tokens, each (texts, H, 512, D)."""

    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def shape(self) -> Shape:
        """Of the layer."""
        return Shape(self.query.shape[1], self.key.shape[1], self.query.shape[3])

    def texts(self, first: int, end: int) -> "States":
        """Some of the texts."""
        return States(self.query[first:end], self.key[first:end], self.value[first:end])

    def laid(self, length: int) -> "States":
        """The first `length` tokens of all texts, laid end to end as often as it takes: (1, H, length, D)."""

        def one(states: Tensor) -> Tensor:
            row = states.transpose(0, 1).flatten(1, 2)
            return row.repeat(1, -(-length // row.shape[1]), 1)[None, :, :length].contiguous()

        return States(one(self.query), one(self.key), one(self.value))

    def rows(self, parameters: dict[str, Tensor] | None = None) -> Rows:
        """As a layout sees them."""
        return Rows(self.query, self.key, self.shape.width**-0.5, parameters=parameters or {})

    def call(self, method: Method, parameters: dict[str, Tensor] | None = None) -> Attention:
        """As a kernel sees them."""
        return Attention(
            self.query,
            self.key,
            self.value,
            method,
            scale=self.shape.width**-0.5,
            parameters=parameters or {},
        )


def states_of(text: Path, quick: bool) -> States:
    """What a layer of MiniLM computes of the beginning of a file. Raises OptionError for one that is too short."""
    needed = (FITTED[quick] + HELD_OUT) * TOKENS
    try:
        words = text.read_text(encoding="utf-8")[: 12 * needed]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"text {text}: {error}", "text") from error
    tokenizer = read_tokenizer(minilm_folder())
    ids = torch.tensor(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < needed:
        raise OptionError(f"text {text} must have at least {needed:,} tokens, got {len(ids):,}", "text")
    model: Any = AutoModel.from_pretrained(minilm_folder()).eval()
    attention = model.encoder.layer[LAYER].attention.self
    size = (-1, TOKENS, attention.num_attention_heads, attention.attention_head_size)
    seen: dict[str, list[Tensor]] = {name: [] for name in ("query", "key", "value")}
    for name, kept in seen.items():
        getattr(attention, name).register_forward_hook(lambda *call, kept=kept: kept.append(call[-1]))
    with torch.no_grad():
        for some in ids[:needed].view(-1, TOKENS).split(TOGETHER):
            model(input_ids=some)
    return States(**{name: torch.cat(kept).view(size).transpose(1, 2) for name, kept in seen.items()})


def steps_of(quick: bool) -> int:
    """How often the measurements say what is next."""
    return len(BLOCKS[quick]) * (1 + len(LENGTHS[quick])) + len(LISTED[quick])


def measure_predicted(
    states: States, sparsity: float, effort: Effort, quick: bool, told: Callable[[str], None]
) -> list[Predicted]:
    """Fit blocks of each size, and time their attention at each length, prediction included."""
    fitted, held_out = states.texts(0, FITTED[quick]), states.texts(FITTED[quick], FITTED[quick] + HELD_OUT)
    found = []
    for size in BLOCKS[quick]:
        told(f"sparsefinder, fitting blocks of {size}")
        layout, parameters = _fitted(fitted, held_out, size, sparsity, CLUSTERS[quick])
        for length in LENGTHS[quick]:
            told(f"sparsefinder, blocks of {size}, {length:,} tokens")
            found.append(_timed(held_out.laid(length), layout, parameters, effort))
    return found


def _fitted(
    states: States, held_out: States, size: int, sparsity: float, clusters: Sequence[int]
) -> tuple[Sparsefinder, dict[str, Tensor]]:
    """A finder of blocks, with those of some numbers of clusters that give about this sparsity, and what it holds."""
    asked = Sparsefinder(block_size=size, window=1)
    finder = Finder(asked, states.shape, gold_of(RULE), seed=0)
    finder.see(states.rows())
    some, best = held_out.laid(LENGTHS[True][0]), None
    for count in clusters:
        layout = replace(asked, clusters=count)
        held = _held(finder, layout)
        graph = layout.blocks(some.rows(held))
        assert graph is not None
        assert graph.seen is not None
        away = abs(1 - float(graph.seen.float().mean()) - sparsity)
        if best is None or away < best[0]:
            best = (away, layout, held)
    assert best is not None
    return best[1:]


def _timed(states: States, layout: Sparsefinder, parameters: dict[str, Tensor], effort: Effort) -> Predicted:
    method = Method(layout, RULE)
    ours, all_pairs = states.call(method, parameters), states.call(Method(rule=RULE))
    calls: dict[str, Call] = {
        ALL: lambda: dispatch.attention(all_pairs),
        OURS: lambda: dispatch.attention(ours),
        PREDICTING: lambda: with_blocks(ours),
    }
    absent = []
    try:
        weigh = installed("entmax", "entmax").entmax15
        calls[ENTMAX] = lambda: (
            weigh((states.query @ states.key.mT) * states.shape.width**-0.5, dim=-1) @ states.value
        )
    except UnavailableError as reason:
        absent.append(Absent(ENTMAX, str(reason)))
    with torch.no_grad():
        _check(ours)
        for call in calls.values():
            warm_up(call)
        times = interleaved(calls, effort, clock_of("cpu"))
        scores = [_scored(ours.of([head], method), layout) for head in range(states.shape.heads)]
    shares = [one / whole for one, whole in zip(times[PREDICTING], times[OURS], strict=True)]
    batch, heads, length, width = states.query.shape
    return Predicted(
        method=method.spec,
        model=MODEL,
        layer=LAYER,
        shape={"batch": batch, "heads": heads, "length": length, "width": width},
        block_size=layout.block_size,
        scores={name: fmean(each[name] for each in scores) for name in scores[0]},
        predicting_share=median(shares),
        timed=compared(times, ALL),
        absent=absent,
    )


def _scored(one_head: Attention, layout: Sparsefinder) -> dict[str, float]:
    """Of one head at a time, as its scores are a matrix of all pairs."""
    full = FullGraph.of(RULE, one_head.rows, one_head.value)
    whole, alone = (full.scores(each, output=False).means() for each in (layout, layout.learned))
    named = {**whole, **{f"{name}_without_window": each for name, each in alone.items()}}
    return {name: each for name, (each,) in named.items()}


def _check(call: Attention) -> None:
    """Raise AssertionError unless the kernel agrees with the reference on the call's first two heads."""
    heads, method = [0, 1], call.method
    assert isinstance(method, Method)
    some = call.of(heads, method)
    found, meant = (dispatch.attention(some, kernel)[0] for kernel in ("auto", dispatch.REFERENCE))
    torch.testing.assert_close(found, meant, rtol=0, atol=1e-4)


def measure_listed(states: States, effort: Effort, quick: bool, told: Callable[[str], None]) -> list[Listed]:
    """Time the listing of predicted pairs against length, with groups that stay as large as they are."""
    found, finder = [], Finder(Sparsefinder(), states.shape, gold_of(RULE), seed=0)
    finder.see(states.texts(0, TOGETHER).rows())
    for length in LISTED[quick]:
        told(f"sparsefinder, listing pairs, {length:,} tokens")
        for layout in (
            Sparsefinder(clusters=max(1, length // GROUP)).learned,
            Sparsefinder("quantize", bucket_size=BUCKET).learned,
        ):
            rows = states.laid(length).rows(_held(finder, layout))
            found.append(_listed(rows, layout, effort))
    return found


def _held(finder: Finder, layout: Sparsefinder) -> dict[str, Tensor]:
    return {f"layout.{name}": value for name, value in finder.values(layout).items()}


def _listed(rows: Rows, layout: Sparsefinder, effort: Effort) -> Listed:
    heads, length = rows.query.shape[1:3]
    calls: dict[str, Call] = {LISTING: lambda: layout.pairs(rows)}
    if length <= MOST_COMPARED:
        calls[COMPARING] = lambda: layout.visible(rows)
    with torch.no_grad():
        for call in calls.values():
            warm_up(call)
        times = interleaved(calls, effort, clock_of("cpu"))
        pairs = layout.pairs(rows).shape[1]
    seconds = {name: median(taken) for name, taken in times.items()}
    return Listed(layout.variant, length, pairs / heads, pairs / heads / length**2, seconds)
