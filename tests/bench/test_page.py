"""The page of a run: all of it in one file, and nothing that is not its own."""

import re
from dataclasses import replace

import pytest

from crisp_attention.bench.bar_picture import draw_bars
from crisp_attention.bench.contender import Absent
from crisp_attention.bench.page import write_page
from crisp_attention.bench.results import Results
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


def test_it_has_bars_tables_and_pictures(results, tmp_path) -> None:
    text = page_of(results, tmp_path)
    for words in (
        *("missed", "not measured", "window 129, 2,048", "window:width=129", "topk:sparsity=0.8"),
        *("How much of each bar was used", "Time against length", "wrong: &lt;differs&gt;"),
    ):
        assert words in text
    assert text.count("<svg") == 2
    assert re.search(r"✗ missed</span>", text)
    assert 'src="http' not in text
    assert "<script" not in text


def test_what_was_not_measured_has_no_section(tmp_path) -> None:
    text = page_of(Results(["crisp", "bench"], {}, made.MACHINE), tmp_path)
    for name in ("figures", "bars", "situations", "attention", "memory"):
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
