"""csv and tsv: what was written is what is read, or the file and the line are named."""

import csv
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crisp_attention.runs.data.files import read_files
from tests.runs.tables import PAIR, refuses, task_of, write

GOOD = "text,label\n" + "a film,1\nno film,0\n" * 5
# pandas on Python 3.11 writes a lone carriage return without the quotes that it needs
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=30)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS.filter(str.strip), min_size=4, max_size=12),
    labels=st.sampled_from([("pos", "neg"), ("a,b", 'c"d'), (1, 0), (-3, 12), (True, False), ("1\t2", "3")]),
    ending=st.sampled_from(["csv", "tsv"]),
    index=st.booleans(),
)
def test_what_pandas_writes_is_read_as_it_was(tmp_path, texts, labels, ending, index):
    file = tmp_path / f"rows.{ending}"
    texts = [*texts, "not a number"]
    frame = pd.DataFrame({"text": texts, "label": [labels[row % 2] for row in range(len(texts))]})
    frame.to_csv(file, sep={"csv": ",", "tsv": "\t"}[ending], index=index)
    task = task_of(str(file), text_columns=["text"])
    rows = sorted([*task.splits["train"], *task.splits["validation"]], key=lambda row: row["index"])
    assert [row["text"] for row in rows] == texts
    names = [task.label_names[row["labels"]] for row in rows]
    assert names == [str(label).strip() for label in frame["label"]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a, b,1"], "line 12: expected 2 fields, as in the header (text, label); found 3: 'a', ' b', '1'"),
        (["a"], "line 12: expected 2 fields, as in the header (text, label); found 1: 'a'"),
        (['"a\nb\nc",1', "", "d,1,"], "line 16: expected 2 fields"),
        (['"a"b,1'], "line 12: quotes that do not match"),
        (['"a,1', "b,1"], "line 12: quotes that do not match"),
    ],
)
def test_a_row_that_is_not_as_wide_as_the_header_is_refused_with_its_line(tmp_path, lines, message):
    file = tmp_path / "train.csv"
    file.write_text(GOOD + "".join(f"{line}\n" for line in lines))
    refuses(f"{file}, {message}", tmp_path)
    with gzip.open(tmp_path / "rows.csv.gz", "wt") as packed:
        packed.write(file.read_text())
    refuses(f"{tmp_path / 'rows.csv.gz'}, {message}", tmp_path / "rows.csv.gz")


def test_all_rows_a_field_wider_than_the_header_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "w1 w2, w3,1\nw1, w2,0\n" * 8)
    refuses("train.csv, line 2: expected 2 fields, as in the header (text, label); found 3", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label,text\na,1,b\n", "expected each column once in the header; found text more than once"),
        ("\n\n", "is empty: expected a header and rows; found none"),
        ("text,label\n\n", "the train split is empty: expected rows in "),
        (b"text,label\na,1\n\xff\xfe,0\n", "after line 1: expected text in UTF-8"),
        (
            "text;label\na;1\n",
            "expected columns separated by commas; found the header 'text;label', separated by ';'",
        ),
        ("text\tlabel\na\t1\n", "found the header 'text\\tlabel', separated by '\\t'"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, message):
    file = tmp_path / "train.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refuses(message, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        GOOD.replace("\n", "\n\n"),
        GOOD.replace("text,label", ' text , "label"'.replace(' "', '"')),
        GOOD.removesuffix("\n"),
    ],
    ids=["byte order mark", "crlf", "cr", "blank lines", "spaces in the header", "no last line end"],
)
def test_ways_to_write_the_same_table(tmp_path, content):
    (tmp_path / "train.csv").write_bytes(content.encode())
    rows = task_of(write(tmp_path, validation=PAIR)).splits["train"]
    assert rows["text"][:] == ["a film", "no film"] * 5
    assert rows["labels"][:] == [1, 0] * 5


def test_quotes_in_a_tsv_file_are_text_where_they_do_not_quote(tmp_path):
    plain = ['"Well," he said', 'a "film"', '"no end', 'and "', '"whole"', "x"] * 2
    (tmp_path / "train.tsv").write_text(
        "text\tlabel\n" + "".join(f"{text}\t{row % 2}\n" for row, text in enumerate(plain))
    )
    rows = task_of(write(tmp_path, validation=PAIR)).splits["train"]
    assert rows["text"][:] == plain
    quoted = ["a\tb", 'say "no"', "two\nlines", "x"] * 3
    pd.DataFrame({"text": quoted, "label": [0, 1] * 6}).to_csv(tmp_path / "train.tsv", sep="\t", index=False)
    assert task_of(str(tmp_path)).splits["train"]["text"][:] == quoted


def test_long_fields_are_read_and_the_limit_of_the_csv_module_stays(tmp_path):
    limit = csv.field_size_limit()
    long = "word " * 40_000
    (tmp_path / "train.csv").write_text(f"text,label\n{long},1\nshort,0\n" * 1 + "a,1\nb,0\n" * 5)
    assert task_of(write(tmp_path, validation=PAIR)).splits["train"]["text"][0] == long
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("train", "other", "kind"),
    [
        (["1", "20"], ["-3", ""], "int64"),
        (["1", "2.5"], ["3", "4"], "float64"),
        (["1", "2"], ["3", "four"], "string"),
        (["007", "12"], ["3", "4"], "string"),
        (["True", "False"], ["True", ""], "bool"),
        (["9" * 30, "1"], ["2", "3"], "string"),
        (["NA", "null"], ["None", "nan"], "string"),
        (["", ""], ["", ""], "string"),
    ],
)
def test_a_column_is_of_one_type_in_all_files(tmp_path, train, other, kind):
    for split, values in (("train", train), ("test", other)):
        lines = "".join(f"{value},text {row},{row % 2}\n" for row, value in enumerate(values * 4))
        (tmp_path / f"{split}.csv").write_text("x,text,label\n" + lines)
    refuses(
        f"there is no column y; the columns are x ({kind}), text (string), label (int64)",
        tmp_path,
        label_column="y",
    )


def test_digits_are_text_where_a_file_with_types_says_so(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "1,1\n2,0\n" * 5)
    refuses("expected a text or image column", tmp_path)
    write(tmp_path, validation=PAIR)
    assert task_of(str(tmp_path)).splits["train"]["text"][:2] == ["1", "2"]


def test_more_rows_than_are_read_at_once(tmp_path):
    count = 25_001
    numbers = np.arange(count)
    pd.DataFrame({"text": [f"t {n}" for n in numbers], "label": numbers % 3}).to_csv(
        tmp_path / "train.csv", index=False
    )
    rows = read_files("train", [tmp_path / "train.csv"])
    assert rows["text"][:] == [f"t {n}" for n in numbers]
    assert rows["label"][:] == [str(n % 3) for n in numbers]


def test_numbered_parts_of_csv(tmp_path):
    for part in range(2):
        (tmp_path / f"train-0000{part}-of-00002.csv").write_text(GOOD.replace("film", f"film {part}"))
    rows = task_of(write(tmp_path, validation=PAIR)).splits["train"]
    assert rows["text"][:] == [f"{word} film {part}" for part in range(2) for word in ("a", "no") * 5]
    (tmp_path / "train-00001-of-00002.csv").write_text(GOOD + "x\n")
    refuses("train-00001-of-00002.csv, line 12: expected 2 fields", tmp_path)


def test_json_labels_with_a_csv_split(tmp_path):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "x", "label": "1"}) + "\n")
    assert task_of(str(tmp_path)).splits["test"]["labels"][:] == [1]
