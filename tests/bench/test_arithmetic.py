"""From times to ratios, limits, verdicts and tables."""

import io
import json

import pytest
from rich.console import Console

from crisp_attention.bench.bars import BARS, PRUNED, bars_of, verdict
from crisp_attention.bench.case import Case, Shape
from crisp_attention.bench.contender import CRISP, DENSE, Absent
from crisp_attention.bench.hooked import GPT
from crisp_attention.bench.limit import arithmetic, products
from crisp_attention.bench.picture import draw
from crisp_attention.bench.printed import show
from crisp_attention.bench.pruned import planned
from crisp_attention.bench.results import Hooked, Pruned
from crisp_attention.bench.rounds import Effort, Spread, compared, interleaved
from crisp_attention.bench.tables import limit_ratio
from crisp_attention.methods.spec import parse
from tests.bench import made

LONG = BARS[1]  # top-k, 512 to 4,096 tokens


def shown(results):
    out = io.StringIO()
    show(results, Console(file=out, width=100))
    return out.getvalue()


def test_ratios_are_taken_round_by_round():
    dense, ours = [1.0, 2.0, 4.0], [1.5, 2.0, 12.0]
    first, second = compared({DENSE: dense, CRISP: ours}, DENSE)
    assert first.ratio == Spread(1.0, 1.0, 1.0)
    assert second.ratio == Spread(1.5, 1.25, 2.25)  # of 1.5, 1 and 3; not 2 / 2
    assert second.seconds.median == 2.0
    assert second.rounds == 3


def test_the_order_rotates_and_all_take_part_in_each_round():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved(calls, Effort(4, 100), lambda call: call() or 1.0)
    assert "".join(order) == "abcbcacababc"
    assert times == {name: [1.0] * 4 for name in "abc"}


def test_rounds_end_when_the_time_is_spent_but_three_there_are():
    times = interleaved({"a": lambda: None}, Effort(100, 0), lambda call: 1.0)
    assert len(times["a"]) == 3


@pytest.mark.parametrize(
    ("spec", "backward", "expected"),
    [
        ("dense", False, 1.0),
        ("dense", True, 1.0),
        ("topk", False, 0.6),
        ("topk", True, 3 / 7),
        ("block_topk", False, 0.2),
        ("block_topk", True, 0.2),
    ],
)
def test_the_least_work(spec, backward, expected):
    case = Case(parse(spec), Shape(1, 12, 512, 64), backward)
    assert arithmetic(case, 1.0 if spec == "dense" else 0.2) == pytest.approx(expected)


def test_the_limit_is_that_work_at_the_rate_of_matrix_products():
    cell = made.attention("topk:sparsity=0.8", 2048, backward=False)
    shape = Shape(1, 12, 2048, 64)
    assert shape.products == 2 * 12 * 2048 * 2048 * 64
    case = Case(parse("topk"), shape, False)
    assert cell.limit_seconds == pytest.approx(products(case, 0.2) * shape.products / made.RATE)
    assert limit_ratio(cell) == pytest.approx(0.3)  # dense was made to run at half the rate


def test_a_bar_is_judged_by_its_worst_length():
    results = made.results()
    found = verdict(LONG, results, backward=False)
    assert (found.worst, found.missing, found.holds) == (pytest.approx(0.9), (), True)
    cells = [c for c in results.attention if not (c.name == "topk" and c.shape["length"] == 1024)]
    results.attention = [*cells, made.attention("topk:sparsity=0.8", 1024, ratio=1.3)]
    found = verdict(LONG, results, backward=False)
    assert (found.worst, found.length, found.holds) == (pytest.approx(1.3), 1024, False)
    assert verdict(LONG, results, backward=True).holds is None  # 1,024 is missing there
    line = next(line for line in shown(results).splitlines() if "missed" in line and "1.30" in line)
    assert line.split()[-4:] == ["1.30", "1.2", "108%", "missed"]


@pytest.mark.parametrize(
    ("name", "value"), [("heads", 4), ("width", 32), ("dtype", "bfloat16"), ("batch", 2)]
)
def test_what_was_measured_otherwise_is_not_judged(name, value):
    results = made.results()
    for cell in results.attention:
        cell.shape[name] = value
    found = verdict(LONG, results, backward=False)
    assert (found.worst, found.holds) == (None, None)
    assert len(found.missing) == 4


def test_another_sparsity_is_not_judged():
    results = made.results()
    results.attention = [made.attention("topk:sparsity=0.5", length) for length in LONG.sizes]
    assert verdict(LONG, results, backward=False).worst is None


def test_the_tables_fit_and_say_what_is_missing():
    text = shown(made.results())
    assert max(map(len, text.splitlines())) <= 100
    assert "FlexAttention: cannot rank a row" in text
    assert " missed" not in text
    for bar in BARS:  # those of other machines are left out
        assert (bar.name in text) == ("GPU" not in bar.name)


def test_the_numbers_survive_json():
    plain = made.results().plain()
    again = json.loads(json.dumps(plain))
    assert again["format"] == 1
    assert set(again) == {
        *("format", "command", "options", "machine", "matrix_rate"),
        *("attention", "step", "memory", "first_call", "hooked", "pruned", "predicted", "listed"),
        "situated",
    }
    cell = again["attention"][0]
    assert cell["shape"] == {
        "batch": 32,
        "heads": 12,
        "length": 64,
        "width": 64,
        "dtype": "float32",
        "device": "cpu",
        "causal": False,
    }
    assert set(cell["timed"][0]) == {"name", "seconds", "ratio", "rounds"}
    assert set(cell["timed"][0]["ratio"]) == {"median", "low", "high"}
    assert cell["absent"] == [{"name": "FlexAttention", "reason": "cannot rank a row"}]


def test_the_picture_is_of_attention_alone(tmp_path):
    results = made.results()
    draw(results, tmp_path)
    svg = (tmp_path / "bench.svg").read_text()
    for words in ("forward + backward", "tokens in the sequence", "limit of arithmetic", "x-transformers"):
        assert words in svg
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    results.attention = []
    draw(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_hooks_add_is_judged_by_hand_as_a_whole_and_in_diffusers_by_the_call():
    results, added = made.results(), Spread(30e-6, 20e-6, 40e-6)
    results.hooked = [
        Hooked(name, "Attention", 10, added, Spread(1e-7, 0, 1e-7), 0.1, 0.0018) for name in (GPT, "DiT")
    ]
    results.hooked.append(Hooked("Flux", absent=[Absent("Flux", "diffusers is not installed")]))
    out = io.StringIO()
    show(results, Console(file=out, width=100, force_terminal=True, color_system="standard"))
    by_hand, of_diffusers = (
        line for line in out.getvalue().splitlines() if "Attention" in line and "0.18%" in line
    )
    red = "\x1b[31m"
    assert f"{red}30.0" in by_hand
    assert red not in of_diffusers
    assert "3.00" in of_diffusers
    assert "Flux" in out.getvalue()
    assert "diffusers is not installed" in out.getvalue()


def pruned(subject: str, ours: float, target: float = 0.9, saved: float | None = None) -> Pruned:
    size = "32 x 128" if saved else "512"
    timed = compared({DENSE: [1.0] * 3, CRISP: [ours] * 3}, DENSE)
    return Pruned(subject, size, "blocks of 32", 0.92, target, 0.1, saved and 0.1, saved, timed)


def test_pruned_layers_and_models_are_judged_by_time_and_bytes():
    results = made.results()
    results.pruned = [
        *(pruned("768 to 3072", ours, target) for target, ours in ((0.9, 0.16), (0.75, 0.3), (0.5, 0.9))),
        pruned("MiniLM", 0.4, saved=0.63),
        Pruned("MiniLM", "8 x 512", "blocks of 32", 0.9, 0.9, absent=[Absent("MiniLM", "no such package")]),
    ]
    out = io.StringIO()
    show(results, Console(file=out, width=80, force_terminal=True, color_system="standard"))
    text, red = out.getvalue(), "\x1b[31m"
    assert [f"{red}{value}" in text for value in ("0.160", "0.300", "0.900", "0.400", "0.630")] == [
        *(True, False, False, False, True)
    ]
    assert "no such package" in text
    assert bars_of(results.pruned[2]) == (None, None, None)
    assert max(len(line) for line in shown(results).splitlines()) <= 100


def test_the_bars_of_pruning_are_of_what_is_measured():
    layers, models = planned(quick=False)
    sizes = {(f"{each.inputs} to {each.outputs}", f"{each.rows}", each.sparsity) for each in layers}
    sizes |= {(str(each), f"{each.batch} x {each.length}", each.sparsity) for each in models}
    assert {(subject, size, target) for subject, size, _, target in PRUNED} <= sizes
    assert sum(map(len, planned(quick=True))) < sum(map(len, planned(quick=False))) / 5
