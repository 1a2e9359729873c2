"""`crisp report`: the files next to the page, the folder they are in, and the command."""

import io
import sys
from base64 import b64decode
from dataclasses import replace
from xml.etree import ElementTree

import pandas as pd
import pytest
from PIL import Image

from crisp_attention.cli import main as cli
from crisp_attention.drawing.svg import standalone
from crisp_attention.errors import DataError, OptionError
from crisp_attention.runs.data import load_task
from crisp_attention.runs.spec import Data
from crisp_attention.studies.analysis import analyse, statements
from crisp_attention.studies.report import writing
from crisp_attention.studies.report.figures import main_pictures
from crisp_attention.studies.report.page import read_examples
from crisp_attention.studies.report.writing import write_report
from tests.studies.reports import ACCURACIES, HOSTILE, NAMES, exact
from tests.studies.studies import World, make_study

pytestmark = pytest.mark.usefixtures("own_cache")
FILES = ["figures", "report.html", "runs.csv", "summary.md", "table.csv"]


@pytest.fixture
def small(tmp_path):
    """A study of two configurations."""
    return make_study(tmp_path / "study", {"dense": 0.8, "topk:sparsity=0.5": 0.8}, 3, World(examples=50))


@pytest.fixture
def crisp(monkeypatch, capsys):
    """Runs `crisp report` in this process: exit status, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["crisp", "report", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


# --- tables, figures, summary


@pytest.mark.slow
def test_the_tables_hold_every_number_exactly(report):
    analysis, folder = report
    table = exact(folder / "table.csv")
    assert table["method"].tolist() == list(ACCURACIES)
    for (_, row), line in zip(table.iterrows(), analysis.lines, strict=True):
        assert row["accuracy"] == line.runs["score"].mean()
        assert (row["accuracy_low"], row["accuracy_high"]) == line.score[1:]
        assert row["note"] == HOSTILE
        for name, found in (("dense", line.to_dense), ("random", line.to_random)):
            if found is None:
                assert row.filter(like=f"to_{name}").isna().all()
            else:
                assert (row[f"to_{name}"], row[f"to_{name}_low"], row[f"to_{name}_high"]) == found.difference
                assert row[f"to_{name}_bootstrap_high"] == found.bootstrap.high
                assert (row[f"to_{name}_p"], row[f"to_{name}_verdict"]) == (found.p, found.verdict.value)
    runs = exact(folder / "runs.csv")
    for line in analysis.lines:
        own = runs[runs["method"] == line.configuration.spec].reset_index(drop=True)
        columns = [each.replace("score", "accuracy") for each in line.runs.columns]
        assert own[columns].to_numpy().tolist() == line.runs.to_numpy().tolist()


def test_the_figures_are_svg_files_of_their_own(report):
    files = sorted((report[1] / "figures").iterdir())
    assert [each.stem for each in files if not each.stem.startswith("heads-")] == [
        "accuracy",
        "difference",
        "gap",
        "learning",
        "loss",
    ]
    assert len(files) == 5 + 4
    for file in files:
        root = ElementTree.parse(file).getroot()
        text = file.read_text(encoding="utf-8")
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].attrib["fill"] == "#ffffff"
        assert "var(" not in text
        assert "style=" not in text


def test_the_figures_do_not_change_from_one_time_to_the_next(report):
    analysis, folder = report
    for each in main_pictures(analysis)[:1]:
        assert (folder / "figures" / f"{each.name}.svg").read_text(encoding="utf-8") == standalone(each.svg)


def test_the_summary_has_the_verdicts_the_table_and_the_command_and_no_markup_from_data(report):
    analysis, folder = report
    text = (folder / "summary.md").read_text(encoding="utf-8")
    for line in analysis.lines:
        label = line.configuration.label.replace("_", "\\_")
        assert f"\n| {label} | {len(line.runs)} | {100 * line.runs['score'].mean():.2f} ±" in text
    for each in statements(analysis):
        label = each.configuration.label.replace("_", "\\_")
        shown = each.verdict is not None and each.baseline.is_dense
        assert (f"- **{label}**: {each.words}" in text) == shown
    prose = [each for each in text.splitlines() if not each.startswith("    ")]
    assert not [each for each in prose if "<script" in each.replace("\\<", "")]
    rows = [each.replace("\\|", "") for each in prose if each.startswith("|")]
    assert {each.count("|") for each in rows} == {13, 5}
    assert "    crisp sweep --text '<script>" in text


# --- examples


def on(study, source):
    """The study, as if it had been made on other data."""
    return replace(study, plan=replace(study.plan, data=Data(source=source)))


def test_texts_of_other_data_are_not_shown(tmp_path):
    texts = [f"text {number}" for number in range(40)]
    study = make_study(tmp_path / "study", {"dense": 0.8}, 1, World(examples=40), texts=texts)
    labels = study.finished(study.dense)[0].predictions("test")["label"]
    found = read_examples(study, "test", [7, 0], labels[[7, 0]].tolist())
    assert [each.text for each in found] == ["text 7", "text 0"]
    with pytest.raises(DataError, match=r"expected label . for example 7; found .: other data"):
        read_examples(study, "test", [7], [1 - labels[7]])
    with pytest.raises(DataError, match="expected an example 40; the split has 40 now"):
        read_examples(study, "test", [40], [0])


def test_two_texts_are_joined_and_long_ones_cut(small, tmp_path):
    rows = pd.DataFrame({"premise": ["a b"] * 20, "hypothesis": ["c" * 400] * 20, "label": [0, 1] * 10})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows.to_json(tmp_path / "data" / f"{split}.jsonl", orient="records", lines=True)
    found = read_examples(on(small, str(tmp_path / "data")), "test", [1], [1])[0]
    assert found.text == ("a b ⏎ " + "c" * 400)[:299] + "…"


def test_images_become_small_pictures(small):
    split = load_task(Data(source="builtin:digits")).splits["test"]
    found = read_examples(on(small, "builtin:digits"), "test", [5], split["labels"][5:6])[0]
    picture = Image.open(io.BytesIO(b64decode(found.picture.removeprefix("data:image/png;base64,"))))
    assert picture.tobytes() == split[5]["image"].tobytes()
    assert (found.text, found.label) == ("", str(split["labels"][5]))


def test_an_image_that_cannot_be_read_is_named(small, tmp_path):
    for row in range(4):
        folder = tmp_path / "data" / "train" / "ab"[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), row).save(folder / f"{row}.png")
    row = load_task(Data(source=str(tmp_path / "data"))).splits["train"][0]
    file = tmp_path / "data" / "train" / "ab"[row["labels"]] / f"{[0, 2, 1, 3][row['index']]}.png"
    file.write_text("no image")
    with pytest.raises(DataError, match=f"cannot read 1 of 1 images of the train split: {file} "):
        read_examples(on(small, str(tmp_path / "data")), "train", [row["index"]], [row["labels"]])


def test_names_of_classes_are_those_of_the_data(report):
    page = (report[1] / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;negative&lt;/b&gt;</td>" in page or "positive &amp; good</td>" in page
    assert NAMES[0] not in page


# --- the folder


@pytest.mark.usefixtures("no_figures")
def test_an_earlier_report_is_replaced_other_things_are_not_and_texts_may_be_absent(small):
    found, output = analyse(on(small, "/nowhere/sst2")), small.path / "report"
    (output / "figures").mkdir(parents=True)
    (output / "figures" / "old.svg").touch()
    write_report(found, output)
    assert sorted(each.name for each in output.iterdir()) == FILES
    assert not (output / "figures" / "old.svg").exists()
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "cannot be shown: expected a folder or a file; /nowhere/sst2 does not exist" in page
    assert "runs</td>" in page
    (output / "thesis.tex").touch()
    with pytest.raises(OptionError, match=r"holds files that do not belong to a report \(thesis.tex\)"):
        write_report(found, output)
    with pytest.raises(OptionError, match="is a file; expected a folder"):
        write_report(found, small.path / "study.json")
    with pytest.raises(OptionError, match=r"not belong to a report \(report, runs, study.json\)"):
        write_report(found, small.path)


@pytest.mark.usefixtures("no_figures")
def test_a_failure_leaves_the_earlier_report_and_nothing_else(small, monkeypatch):
    output = small.path / "report"
    output.mkdir()
    (output / "summary.md").write_text("earlier")
    monkeypatch.setattr(writing, "_write_figures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(analyse(small), output)
    assert (output / "summary.md").read_text() == "earlier"
    assert sorted(each.name for each in small.path.iterdir()) == ["report", "runs", "study.json"]


def test_a_report_that_cannot_take_its_place_puts_the_earlier_one_back(tmp_path, monkeypatch):
    output = tmp_path / "report"
    output.mkdir()
    (output / "summary.md").write_text("earlier")
    rename = type(output).rename

    def failing(self, target):
        if self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(output), "rename", failing)
    with (
        pytest.raises(OptionError, match="No space left on device"),
        writing.replacing(output, writing.check),
    ):
        pass
    assert (output / "summary.md").read_text() == "earlier"
    assert [each.name for each in tmp_path.iterdir()] == ["report"]


# --- the command


@pytest.mark.usefixtures("no_figures")
def test_the_command_prints_the_answer_the_table_and_where_the_report_is(crisp, small):
    status, out, err = crisp(small.path)
    assert status == 0
    assert "no difference" in out
    assert "topk 50 %" in out
    assert f"the report is {small.path / 'report' / 'report.html'}" in out.splitlines()
    assert "intervals over 3 seeds are wide" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected one study, or two to compare; found 0"),
        (("a", "b", "c"), "expected one study, or two to compare; found 3"),
        (("nowhere",), "nowhere holds no study: expected study.json"),
    ],
)
def test_what_cannot_be_reported_is_an_error_in_one_line(crisp, words, said):
    status, _, err = crisp(*words)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1
