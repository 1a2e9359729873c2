"""The summary of bars: every part that has bars is in it, and it says by how much they are missed."""

from dataclasses import asdict

import pytest

from crisp_attention.bench.bars import MEMORY_LENGTH
from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import CRISP, DENSE, Absent
from crisp_attention.bench.hooked import GPT
from crisp_attention.bench.results import Hooked, Memory, Pruned, Results, Situated
from crisp_attention.bench.rounds import Spread, compared
from crisp_attention.bench.summary import counted, judged
from tests.bench import made


def of_situation(row, size, ratio, backward=False):
    timed = compared({DENSE: [1.0] * 3, CRISP: [ratio] * 3}, DENSE) if ratio else []
    return Situated("rows", row, size, "a method", backward, timed, [])


def of_memory(ratio, causal=False):
    shape = asdict(Shape(1, 12, MEMORY_LENGTH, 64, causal=causal))
    return Memory("window:width=129", shape, False, {}, ratio, "VmHWM", [])


@pytest.fixture
def results() -> Results:
    found = Results(["crisp", "bench"], {}, made.MACHINE)
    found.situated = [
        of_situation("window 129", "2,048", 0.4),
        of_situation("window 129", "2,048", 0.1, backward=True),
        of_situation("top-p", "2,048", None),
        of_situation("of no bar", "2,048", 9.0),
    ]
    found.memory = [of_memory(1.2), of_memory(None, causal=True)]
    found.hooked = [
        Hooked(GPT, "Attention", 10, Spread(50e-6, 0, 1)),
        Hooked("Flux", absent=[Absent("Flux", "no")]),
    ]
    timed = compared({DENSE: [1.0] * 3, CRISP: [0.16] * 3}, DENSE)
    found.pruned = [Pruned("768 to 3072", "512", "blocks of 32", 0.92, 0.9, 0.1, timed=timed)]
    return found


def test_the_worst_come_first_and_say_by_how_much(results) -> None:
    found = [(each.case, each.of, each.word, each.share and round(each.share, 2)) for each in judged(results)]
    assert found == [
        ("window 129, 2,048", "forward", "missed", 2.0),
        (f"hooks, {GPT}", "µs", "missed", 2.0),
        ("pruned 768 to 3072, 512, 92% zeros", "time", "missed", 1.07),
        ("memory, window:width=129", "forward", "holds", 0.92),
        ("pruned 768 to 3072, 512, 92% zeros", "bytes in memory", "holds", 0.67),
        ("window 129, 2,048", "+ backward", "holds", 0.5),
        ("top-p, 2,048", "forward", "not measured", None),
        ("memory, window:width=129, causal", "forward", "not measured", None),
        ("hooks, Flux", "µs a call", "not measured", None),
    ]
    assert counted(judged(results)) == "3 hold, 3 missed, 3 not measured"


def test_a_bar_of_several_lengths_holds_as_far_as_they_were_measured() -> None:
    results = made.results()
    assert {each.word for each in judged(results)} == {"holds"}
    results.attention = [cell for cell in results.attention if cell.shape["length"] != 1024]
    partly = {each.case for each in judged(results) if each.word == "partly"}
    assert partly == {"top-k, L 512 … 4,096, at 512", "entmax 1.5, L 512 … 4,096, at 512"}


def test_a_run_without_bars_has_no_summary() -> None:
    assert judged(Results(["crisp", "bench"], {}, made.MACHINE)) == []
