"""`crisp report`: the page in a real browser shows what the analysis says, and text stays text."""

import itertools
import shlex

import pytest

from crisp_attention.studies.analysis import analyse, answer, statements
from crisp_attention.studies.report.writing import write_report
from tests.browser import Tab
from tests.studies.reports import ACCURACIES, HOSTILE, NAMES
from tests.studies.studies import World, make_study

pytestmark = pytest.mark.usefixtures("own_cache")

# the exact numbers in the rows of a table
VALUES = """[...document.querySelector('[aria-label="Table of %s"] tbody').rows].map(
  row => [...row.querySelectorAll('data')].map(each => +each.value))"""
CONTRAST = """((front, back) => {
  const probe = document.body.appendChild(document.createElement('p'));
  const light = name => {
    probe.className = ''; probe.setAttribute('class', ''); probe.style.color = `var(--${name})`;
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(each => each / 255);
    const [r, g, b] = parts.map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [dark, bright] = [light(front), light(back)].sort((a, b) => a - b);
  probe.remove();
  return (bright + 0.05) / (dark + 0.05);
})('%s', '%s')"""


@pytest.fixture(scope="module")
def page(report, browser):
    """The report's page, opened once; for tests that leave it as it is."""
    opened = Tab(browser).open(report[1] / "report.html")
    yield opened
    opened.close()
    assert opened.errors == []


def overflow(tab):
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


# --- the page says what the analysis says


def test_the_accuracies_in_the_page_are_those_of_the_analysis(report, page):
    analysis, _ = report
    rows = page.evaluate(VALUES % "scores")
    assert len(rows) == len(ACCURACIES)
    for row, line in zip(rows, analysis.lines, strict=True):
        expected = [line.runs["score"].mean(), line.sd]
        if (dense := line.to_dense) is not None:
            expected += [dense.difference.mean, dense.p, dense.p_mcnemar, dense.detectable]
        if (random := line.to_random) is not None:
            expected += [random.difference.mean, random.p]
        assert row == expected


def test_the_other_measures_and_the_runs_are_those_of_the_analysis(report, page):
    analysis, _ = report
    columns = ["train_score", "gap", "loss", "ece", "achieved_sparsity", "kept_mass"]
    for row, line in zip(page.evaluate(VALUES % "other measures"), analysis.lines, strict=True):
        means = line.runs.mean()
        time, memory = means["seconds_per_step"], means["peak_memory_bytes"]
        assert row == [*means[columns], time, line.relative_time, memory, line.relative_memory]
    runs = [
        [run[each] for each in ["score", "loss", "ece", "train_score", *columns[1:2], *columns[4:]]]
        for line in analysis.lines
        for _, run in line.runs.iterrows()
    ]
    assert [row[:7] for row in page.evaluate(VALUES % "all runs")] == runs


def test_it_opens_with_the_answer_and_a_sentence_for_each_configuration(report, page):
    analysis, _ = report
    assert page.evaluate("document.querySelector('.answer').textContent") == answer(analysis)
    said = page.evaluate("[...document.querySelectorAll('.verdicts li')].map(each => each.textContent)")
    compared = [each for each in statements(analysis) if each.verdict and each.baseline.is_dense]
    assert len(said) == 4
    for text, each in zip(said, compared, strict=True):
        assert text[2:].replace("\n", "") == each.configuration.label + each.words
    text = page.evaluate("document.body.innerText")
    assert all(" ".join(note.split())[:60] in " ".join(text.split()) for note in analysis.notes)


def test_published_numbers_stand_next_to_ours(report, page):
    analysis, _ = report
    ours = next(line for line in analysis.lines if line.configuration.label == "topk 80 %")
    assert page.evaluate(VALUES % "published numbers") == [[0.9159, ours.runs["score"].mean()], [0.5]]


# --- text stays text


def test_markup_in_names_texts_and_options_is_shown_and_does_not_run(page):
    assert page.evaluate("[typeof window.hit, document.scripts.length, document.images.length]") == [
        "undefined",
        0,
        0,
    ]
    text = " ".join(page.evaluate("document.body.textContent").split())
    shown = " ".join(HOSTILE.split())
    assert text.count(shown) >= 20 + len(ACCURACIES) + 5  # texts of examples, notes, name, options …
    assert "49" not in shown
    assert NAMES[0] in text
    assert len(page.requests) == len([each for each in page.requests if each.startswith("file://")]) == 1


def test_the_command_is_one_that_a_shell_reads_as_it_was(report, page):
    analysis, _ = report
    shown = page.evaluate("document.querySelector('pre').textContent")
    assert shlex.split(shown) == [word.replace("\udcff", "?") for word in analysis.study.command]


# --- everywhere legible


def test_nothing_is_wider_than_the_page(report, tab):
    tab.open(report[1] / "report.html")
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for width, scheme in ((320, "light"), (400, "dark"), (1400, "light")):
        tab.resize(width, scheme=scheme)
        assert overflow(tab) <= 0
        smallest = tab.evaluate(
            "Math.min(...[...document.querySelectorAll('svg text')].map(each => each.getBoundingClientRect().height))"
        )
        assert smallest > 8


def test_light_and_dark_have_contrast_and_the_figures_follow(report, tab):
    tab.open(report[1] / "report.html")
    seen = {}
    for scheme in ("light", "dark"):
        tab.resize(1400, scheme=scheme)
        for front, back in itertools.product(("ink", "quiet", "better", "worse"), ("page", "panel")):
            assert tab.evaluate(CONTRAST % (front, back)) >= 4.5
        seen[scheme] = tab.evaluate(
            "['color', 'backgroundColor'].map(each => getComputedStyle(document.body)[each])"
        )
        fill = "getComputedStyle(document.querySelector('figure svg text')).fill"
        assert tab.evaluate(fill) == seen[scheme][0]
    assert seen["light"][0] != seen["dark"][0]
    assert seen["light"][1] != seen["dark"][1]


def test_paper_is_white_and_shows_what_was_folded(report, tab):
    tab.open(report[1] / "report.html")
    tab.send(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = tab.evaluate(
        "[...document.querySelectorAll('details:not([open]) > :not(summary)')].map(each => each.offsetHeight)"
    )
    assert heights
    assert min(heights) > 0


def test_it_can_be_read_aloud(page):
    assert page.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    labels = page.evaluate(
        "[...document.querySelectorAll('svg')].map(each => each.getAttribute('aria-label'))"
    )
    assert len(labels) == len(set(labels)) == 5 + 4  # three figures, two of curves, heads of four
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


# --- studies with little in them


@pytest.mark.parametrize(
    ("accuracies", "seeds", "missing"),
    [
        ({"dense": 0.8, "topk:sparsity=0.5": 0.8}, 1, ()),
        pytest.param(
            {"dense": 0.8, "topk:sparsity=0.5": 0.8},
            2,
            [("dense", seed) for seed in range(2)],
            marks=pytest.mark.slow,
        ),
        ({"dense": 0.8, "topp:mass=0.9": 0.8}, 1, [("dense", 0), ("topp:mass=0.9", 0)]),
    ],
    ids=["one seed", "no dense run", "no run"],
)
def test_a_study_with_little_in_it_says_so(tmp_path, tab, accuracies, seeds, missing):
    study = make_study(tmp_path / "study", accuracies, seeds, World(examples=50), missing=missing)
    write_report(analyse(study), tmp_path / "report")
    tab.open(tmp_path / "report" / "report.html")
    said = "no verdict yet" if missing else "Nothing can be said yet"
    assert said in tab.evaluate("document.querySelector('.answer').textContent")
    assert "nan" not in tab.evaluate("document.body.textContent").lower()
    assert overflow(tab) <= 0
