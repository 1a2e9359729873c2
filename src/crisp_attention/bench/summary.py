"""All bars that a run touched: which hold, which do not, and by how much."""

from collections.abc import Iterator
from dataclasses import dataclass

from crisp_attention.bench.bars import (
    BARS,
    HOOKS,
    HOOKS_PER_CALL,
    MEMORY,
    MEMORY_LENGTH,
    PREDICTED,
    bar_of,
    bars_of,
    predicted_ratios,
    verdict,
)
from crisp_attention.bench.contender import CRISP
from crisp_attention.bench.hooked import GPT
from crisp_attention.bench.results import Hooked, Memory, Pruned, Results

FORWARD = "forward"
WAYS = (FORWARD, "+ backward")


@dataclass(frozen=True)
class Judged:
    """A bar: `found` and `bar` are ratios to a yardstick, or what `of` says; None for what was not measured.

    complete: False where some of the lengths of a bar were not measured.
    """

    case: str
    of: str
    found: float | None
    bar: float
    complete: bool = True

    @property
    def share(self) -> float | None:
        """What was measured as a share of the bar: at most 1 where it holds."""
        return None if self.found is None else self.found / self.bar

    @property
    def word(self) -> str:
        """holds, missed, partly (what was measured holds, some was not) or not measured."""
        if self.found is None:
            return "not measured"
        if self.found > self.bar:
            return "missed"
        return "holds" if self.complete else "partly"


def judged(results: Results) -> list[Judged]:
    """Every bar that the run touched, the worst first, what was not measured at the end."""
    found = [
        *_of_lengths(results),
        *_of_situations(results),
        *(each for memory in results.memory for each in _of_memory(memory)),
        *(each for pruned in results.pruned for each in _of_pruned(pruned)),
        *(each for hooked in results.hooked for each in _of_hooks(hooked)),
        *_of_predicted(results),
    ]
    return sorted(found, key=lambda each: -(each.share or 0.0))


def counted(found: list[Judged]) -> str:
    """How many hold, and how many do not."""
    numbers = {word: sum(each.word == word for each in found) for word in ("holds", "missed", "partly")}
    numbers["not measured"] = len(found) - sum(numbers.values())
    said = {"holds": "hold", "partly": "hold as far as measured", "missed": "missed"}
    return ", ".join(f"{number} {said.get(word, word)}" for word, number in numbers.items() if number)


def _of_lengths(results: Results) -> Iterator[Judged]:
    for bar in BARS:
        for backward in (False, True):
            found = verdict(bar, results, backward)
            if found is not None and found.worst is not None:
                case = f"{bar.name}, at {found.length:,}"
                yield Judged(case, WAYS[backward], found.worst, found.bar, not found.missing)


def _of_situations(results: Results) -> Iterator[Judged]:
    for each in results.situated:
        if (bar := bar_of(each)) is not None:
            yield Judged(f"{each.row}, {each.size}", WAYS[each.backward], each.ratio, bar)


def _of_memory(each: Memory) -> Iterator[Judged]:
    if each.shape["length"] == MEMORY_LENGTH:
        causal = ", causal" if each.shape["causal"] else ""
        yield Judged(f"memory, {each.method}{causal}", WAYS[each.backward], each.ratio, MEMORY)


def _of_pruned(each: Pruned) -> Iterator[Judged]:
    ratio = next((timed.ratio.median for timed in each.timed if timed.name == CRISP), None)
    values = ("time", ratio), ("bytes in memory", each.layer_bytes), ("bytes of the file", each.saved_bytes)
    for (of, value), bar in zip(values, bars_of(each), strict=True):
        if bar is not None:
            yield Judged(f"pruned {each.subject}, {each.size}, {each.sparsity:.0%} zeros", of, value, bar)


def _of_hooks(each: Hooked) -> Iterator[Judged]:
    seconds = None if each.seconds is None else each.seconds.median
    if each.model == GPT:
        yield Judged(f"hooks, {each.model}", "µs", seconds and 1e6 * seconds, 1e6 * HOOKS)
    else:
        per_call = seconds and 1e6 * seconds / each.calls
        yield Judged(f"hooks, {each.model}", "µs a call", per_call, 1e6 * HOOKS_PER_CALL)


def _of_predicted(results: Results) -> Iterator[Judged]:
    for each in results.predicted:
        for of, value in predicted_ratios(each).items():
            size = f"{each.shape['length']:,}, blocks of {each.block_size}"
            yield Judged(f"predicted blocks, {size}", of, value, PREDICTED[of])
