"""What is in a column decides whether it is an input: not the index of a table, nor the label told again."""

import pandas as pd
import pytest
from datasets import Image, Value
from PIL import Image as PILImage

from tests.runs.tables import noted, refuses, task_of, write, write_features


def table(rows: int = 40, **columns) -> pd.DataFrame:
    """Texts that are all different, labels 0 and 1 by turns, and columns made of the row's number."""
    made = {name: [make(row) for row in range(rows)] for name, make in columns.items()}
    return pd.DataFrame(
        {"text": [f"a film {row}" for row in range(rows)], **made, "label": [0, 1] * (rows // 2)}
    )


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    "index",
    [
        [f"review {row}" for row in range(40)],
        [row * 7 for row in range(40)],
        pd.MultiIndex.from_product([["one film", "two films"], [f"review {row}" for row in range(20)]]),
    ],
    ids=["words", "numbers", "levels"],
)
def test_the_index_that_pandas_writes_is_no_input(tmp_path, ending, index):
    frame = table().set_index(pd.Index(index))
    if ending == "parquet":
        frame.to_parquet(tmp_path / "train.parquet")
    else:
        frame.to_csv(tmp_path / f"train.{ending}", sep={"csv": ",", "tsv": "\t"}[ending])
    frame.reset_index().to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    task = task_of(str(tmp_path))
    assert task.text_columns == ("text",)
    assert task.splits["test"]["text"][:] == frame["text"].tolist()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda row: ("neg", "pos")[row % 2], "restates the label"),
        (lambda row: ("awful", "good", "bad", "great")[row % 4], "restates the label"),
        (lambda row: "a source of films", "is the same in every row"),
        (lambda row: None, "is the same in every row"),
        (lambda row: f"f{row:x}-{row}", "is an identifier of the row"),
        (lambda row: f"img/{row}.png", "is an identifier of the row"),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_column_that_tells_nothing_new_is_no_input_and_the_run_says_so(tmp_path, make, reason, ending):
    frame = table(other=make)
    if ending == "csv":
        frame.to_csv(tmp_path / "train.csv", index=False)
    else:
        frame.to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    task = task_of(str(tmp_path))
    assert task.text_columns == ("text",)
    if frame["other"].notna().all() or ending == "csv":  # jsonl has no type for a column of nulls
        assert f"text column: text; label column: label; not used: other, which {reason}" in task.notes


@pytest.mark.parametrize(
    "make",
    [
        lambda row: ("by day", "by night")[row // 2 % 2],  # few values, on which the label does not depend
        lambda row: f"scene {row // 2}",  # pairs with both labels
        lambda row: f"take {row}",  # words, all different
        lambda row: ("noon", None)[row % 2 * (row > 9)],
        lambda row: f"film{row}" if row else "film",  # not a digit in each
    ],
)
def test_a_column_that_may_tell_something_is_an_input(tmp_path, make):
    table(other=make).fillna("none").to_json(tmp_path / "train.jsonl", orient="records", lines=True)
    assert task_of(str(tmp_path)).text_columns == ("text", "other")


def test_a_named_column_is_an_input_whatever_it_tells(tmp_path):
    table(mood=lambda row: ("neg", "pos")[row % 2]).to_json(
        tmp_path / "train.jsonl", orient="records", lines=True
    )
    task = task_of(str(tmp_path), text_columns=["text", "mood"])
    assert task.text_columns == ("text", "mood")
    assert "the text column mood restates the label" in task.notes
    assert not noted(task_of(str(tmp_path), text_columns=["text"]), "mood")


def test_a_column_is_an_input_when_there_is_nothing_else(tmp_path):
    rows = [{"mood": ("neg", "pos")[row % 2], "label": row % 2} for row in range(20)]
    assert task_of(write(tmp_path, train=rows)).text_columns == ("mood",)
    rows = [row | {"again": row["mood"].upper(), "third": "x"} for row in rows]
    refuses("expected one or two text columns; found mood, again, third", write(tmp_path, train=rows))


def test_the_name_of_the_class_beside_an_image_is_no_input(tmp_path):
    columns = {
        "picture": [PILImage.new("L", (2, 2), row) for row in range(20)],
        "species": ["cat", "dog"] * 10,
        "file": [f"{row}.png" for row in range(20)],
        "label": [0, 1] * 10,
    }
    features = {
        "picture": Image(),
        "species": Value("string"),
        "file": Value("string"),
        "label": Value("int64"),
    }
    task = task_of(write_features(tmp_path, features, train=columns))
    assert (task.text_columns, task.image_column) == ((), "picture")
    assert noted(task, "not used: species, which restates the label, file, which is an identifier of the row")


def test_spaces_around_the_labels_hide_no_column_that_restates_them(tmp_path):
    rows = [
        {"text": f"a {row}", "mood": ("sad", "glad")[row % 2], "label": (" n", "p", "n", "p ")[row % 4]}
        for row in range(40)
    ]
    assert task_of(write(tmp_path, train=rows)).text_columns == ("text",)
