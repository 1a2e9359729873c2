"""The report of a study of pruning: layers by their names, treatments by their labels, and figures that hold both."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from crisp_attention.drawing.svg import standalone
from crisp_attention.studies.analysis import Analysis, analyse
from crisp_attention.studies.report.figures import curve_pictures, layer_pictures, main_pictures
from crisp_attention.studies.report.figures.layers import draw_zeros
from crisp_attention.studies.report.figures.pictures import (
    LOSSES,
    draw_curves,
    draw_differences,
    draw_gaps,
    draw_sparsity,
)
from crisp_attention.studies.report.writing import write_report
from tests.studies.studies import LAYERS, World, make_study

pytestmark = pytest.mark.usefixtures("own_cache")
PRUNE = "prune:sparsity=0.5:pattern=none:block_size=8:steps=2"
ACCURACIES = {"dense": 0.85, PRUNE: 0.84, f"{PRUNE}:gradients=random": 0.8}
LABELS = [
    "pruned 50 %, blocks of 8, steps=2",
    "pruned 50 %, gradients of random classes, blocks of 8, steps=2",
]
CUT = """[...document.querySelectorAll('.scroller, .drawing')].filter(each => each.scrollWidth > each.clientWidth)"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Analysis, Path]:
    """The analysis of a study of two treatments with long labels, and the folder of its report."""
    folder = tmp_path_factory.mktemp("pruning")
    found = analyse(make_study(folder / "study", ACCURACIES, 3, World(examples=60)))
    write_report(found, folder / "report")
    return found, folder / "report"


@pytest.fixture(scope="module")
def analysis(study) -> Analysis:
    return study[0]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts_of(figure: Figure) -> list[Text]:
    """All but the numbers at ticks."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    return [each for each in found if each.get_text()]


def test_each_layer_has_its_name_and_the_mean_of_its_zeros(analysis) -> None:
    runs = analysis.lines[1].measurements
    (axes,) = draw_zeros(runs, "weights").axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 2 * LAYERS
    assert names == runs[0]["name"].tolist()
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx(100 * np.mean([run["sparsity"] for run in runs], axis=0))
    assert [text.get_text() for text in axes.texts] == [f"{width:.0f}" for width in widths]
    assert axes.get_xlabel() == "share of zero weights (%)"
    assert len(axes.lines[0].get_xdata()) == 3 * len(names)


def test_the_page_speaks_of_zero_weights_and_not_of_attention(study) -> None:
    text = (study[1] / "report.html").read_text(encoding="utf-8")
    section = text.split('<h2 id="layers">')[1].split("<h2")[0]
    assert "share of zero weights" in section
    assert ">vit.layers.0.attention.q_proj<" in section
    assert all(f"<summary>{label}</summary>" in section for label in LABELS)
    shown = re.sub("<[^>]*>", " ", text.split("<main>")[1])
    for words in ("kept mass", "valid pairs", "head 0", "each layer and head"):
        assert words not in shown
    summary = (study[1] / "summary.md").read_text(encoding="utf-8")
    assert "kept mass" not in summary
    rows = [line.count("|") for line in summary.splitlines() if line.startswith("|")]
    assert set(rows) == {12}


def test_a_study_of_attention_and_of_weights_has_both_sections(tmp_path) -> None:
    accuracies = {"dense": 0.85, "topk:sparsity=0.5": 0.85, PRUNE: 0.84}
    write_report(
        analyse(make_study(tmp_path / "study", accuracies, 1, World(examples=60))), tmp_path / "report"
    )
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    of_heads, of_layers = text.split('<h2 id="heads">')[1].split('<h2 id="layers">')
    assert re.findall("<summary>(.*?)</summary>", of_heads) == ["topk 50 %"]
    assert re.findall("<summary>(.*?)</summary>", of_layers.split("<h2")[0]) == LABELS[:1]
    assert "<dt>sparsity, of weights</dt>" in text
    assert "<dt>sparsity, of attention, kept mass</dt>" in text


def test_figures_have_labels_and_no_specs(analysis) -> None:
    pictures = [*main_pictures(analysis), *curve_pictures(analysis), *layer_pictures(analysis)]
    assert len(pictures) == 3 + 2 + 2
    for each in pictures:
        assert "prune:" not in standalone(each.svg)
    assert legend_of(draw_sparsity(analysis)) == ["dense", *LABELS]


def test_a_series_of_several_sparsities_is_named_without_them(tmp_path) -> None:
    specs = ["topk:sparsity=0.5", "topk:sparsity=0.8", "random:sparsity=0.8"]
    specs += [f"prune:sparsity={share}:gradients=all" for share in (0.5, 0.75)]
    found = analyse(make_study(tmp_path, dict.fromkeys(["dense", *specs], 0.8), 1, World(examples=40)))
    names = ["dense", "topk", "random 80 %", "pruned, gradients of all classes"]
    assert legend_of(draw_sparsity(found)) == names


@pytest.mark.parametrize(
    "draw",
    [
        draw_sparsity,
        draw_differences,
        draw_gaps,
        lambda analysis: draw_curves(analysis, LOSSES, "accuracy on the user's classes (%)"),
        lambda analysis: draw_zeros(analysis.lines[1].measurements, "weights"),
    ],
    ids=["sparsity", "differences", "gaps", "curves", "zeros"],
)
def test_no_text_leaves_a_figure_or_lies_on_another(analysis, draw) -> None:
    figure = draw(analysis)
    FigureCanvasAgg(figure).draw()
    boxes = {each: each.get_window_extent() for each in texts_of(figure)}
    for each, box in boxes.items():
        assert box.x0 >= -1, each
        assert box.y0 >= -1, each
        assert box.x1 <= figure.bbox.x1 + 1, each
        assert box.y1 <= figure.bbox.y1 + 1, each
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), (one, other)


def test_the_label_of_an_axis_of_curves_is_not_longer_than_it(analysis) -> None:
    figure = draw_curves(analysis, LOSSES, "accuracy on the user's classes (%)")
    FigureCanvasAgg(figure).draw()
    label, axes = figure._supylabel.get_window_extent(), figure.axes[0].get_window_extent()
    assert label.height <= axes.height


def test_rows_leave_the_width_to_the_data(analysis) -> None:
    for figure in (draw_differences(analysis), draw_gaps(analysis)):
        FigureCanvasAgg(figure).draw()
        assert figure.axes[0].get_window_extent().width > 0.9 * figure.bbox.width


def test_on_a_telephone_rows_fit_and_what_does_not_says_so(study, tab) -> None:
    tab.open(study[1] / "report.html")
    tab.resize(420)
    cut = tab.evaluate(f"{CUT}.map(each => each.ariaLabel)")
    assert "Table of scores" in cut
    assert not {"Generalisation gap", "Difference from dense"} & {*cut}
    styles = tab.evaluate(
        f"{CUT}.map(each => getComputedStyle(each)).map(each => [each.overflowX, each.backgroundAttachment])"
    )
    assert {tuple(each) for each in styles} == {("auto", "local, local, scroll, scroll, scroll")}
