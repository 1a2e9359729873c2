"""The page of a run: all of it in one file, and nothing that is not its own."""

import html
import io
import re
from collections import Counter
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from crisp_attention.bench.bar_picture import draw_bars
from crisp_attention.bench.case import Shape
from crisp_attention.bench.contender import CRISP, DENSE, Absent
from crisp_attention.bench.hooked import GPT
from crisp_attention.bench.page import write_page
from crisp_attention.bench.peers import ENTMAX
from crisp_attention.bench.predicted import ALL, COMPARING, LISTING, OURS
from crisp_attention.bench.printed import show
from crisp_attention.bench.results import Hooked, Listed, Predicted, Pruned, Results
from crisp_attention.bench.rounds import Spread, compared
from crisp_attention.bench.summary import Judged, judged
from tests.bench import made
from tests.bench.test_summary import of_memory, of_situation


def page_of(results: Results, folder) -> str:
    write_page(results, folder)
    return (folder / "bench.html").read_text()


@pytest.fixture
def results() -> Results:
    found = made.results()
    slow = of_situation("window 129", "2,048", 0.4)
    lost = replace(slow, row="dense", timed=[], absent=[Absent("crisp", "wrong: <differs>")])
    found.situated, found.memory = [slow, lost], [*found.memory, of_memory(1.2)]
    return found


@pytest.fixture
def everything(results) -> Results:
    """The same with something of every part."""
    spread = Spread(30e-6, 20e-6, 40e-6)
    results.hooked = [Hooked(GPT, "Attention", 10, spread, spread, 0.1, 0.0018)]
    timed = compared({DENSE: [0.0536] * 3, CRISP: [0.16 * 0.0536] * 3}, DENSE)
    layer = Pruned("768 to 3072", "512", "blocks of 32", 0.92, 0.9, 0.0853, timed=timed)
    model = Pruned("MiniLM", "32 x 128", "blocks of 32", 0.91, 0.9, 0.101, 0.102, 0.579, timed)
    lost = Pruned("MiniLM", "8 x 512", "blocks of 32", 0.9, 0.9, absent=[Absent("MiniLM", "no such package")])
    results.pruned = [layer, model, lost]
    shape, scores = asdict(Shape(1, 12, 2048, 32)), {"sparsity": 0.81, "kept_mass": 0.95}
    blocks = compared({ALL: [0.2] * 3, OURS: [0.1] * 3, ENTMAX: [3.0] * 3}, ALL)
    results.predicted = [Predicted("sparsefinder", "MiniLM", 4, shape, 64, scores, 0.2, blocks, [])]
    results.listed = [Listed("kmeans", 4096, 123456.0, 0.037, {LISTING: 0.123, COMPARING: 4.567})]
    return results


def test_it_has_bars_tables_and_pictures(results, tmp_path) -> None:
    text = page_of(results, tmp_path)
    for words in (
        *("missed", "not measured", "window 129, 2,048", "window:width=129", "topk:sparsity=0.8"),
        *("How much of each bar was used", "Time against length", "wrong: &lt;differs&gt;"),
    ):
        assert words in text
    assert text.count("<svg") == 2
    assert '<span class="worse">missed</span>' in text
    assert 'src="http' not in text
    assert "<script" not in text


def test_all_that_the_terminal_prints_is_on_the_page(everything, tmp_path) -> None:
    out = io.StringIO()
    show(everything, Console(file=out, width=1000))
    text = re.sub("<svg.*?</svg>|</?b>", "", page_of(everything, tmp_path), flags=re.DOTALL)  # tables alone
    on_page = Counter(html.unescape(re.sub("<[^>]*>", " ", text)).split())
    words = [word for word in out.getvalue().split() if set(word) != {"─"}]
    numbers = Counter(word for word in words if re.search(r"\d", word))
    assert numbers.total() > 300
    assert numbers - on_page == Counter()
    assert set(words) - set(on_page) == set()


def test_tables_of_pruned_weights_name_their_yardstick_and_speak_of_nothing_else(
    everything, tmp_path
) -> None:
    pruned = Results(["crisp", "bench"], {}, made.MACHINE, pruned=everything.pruned)
    text = page_of(pruned, tmp_path)
    titles = re.findall('role="region" aria-label="(pruned .*?)"', text)
    assert len(titles) == 2
    assert all("as a ratio to nn.Linear" in each for each in titles)
    assert "<dt>nn.Linear</dt>" in text
    assert "Dense SDPA" not in text
    assert "sparse attention" not in text


def test_what_was_not_measured_has_no_section(tmp_path) -> None:
    text = page_of(Results(["crisp", "bench"], {}, made.MACHINE), tmp_path)
    for name in ("figures", "bars", "rows", "attention", "memory", "pruned-weights"):
        assert f'id="{name}"' not in text
        assert f'href="#{name}"' not in text


def test_the_picture_has_a_point_for_each_bar_and_a_row_for_each_case(results) -> None:
    axes = draw_bars(found := judged(results)).axes[0]
    known = [each for each in found if each.share is not None]
    assert len(axes.lines) == 1 + len(known)  # and the line of the bar itself
    assert len(axes.get_yticks()) == len({each.case for each in known})
    assert axes.get_yticklabels()[0].get_text() == known[0].case


def test_less_than_nothing_is_drawn_at_the_left() -> None:
    axes = draw_bars([Judged("hooks", "µs", -3.0, 25.0), Judged("another", "forward", 1.0, 2.0)]).axes[0]
    assert axes.get_xlim()[0] > 0
    assert axes.lines[1].get_xdata()[0] == pytest.approx(0.01)


def test_the_page_is_content_in_a_browser(results, tmp_path, tab) -> None:
    write_page(results, tmp_path)
    tab.open(tmp_path / "bench.html")
    assert "cost on this machine" in tab.evaluate("document.body.innerText")
