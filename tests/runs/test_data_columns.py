"""Columns, labels, and the rows that are taken out of train."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from crisp_attention.runs.data.labels import learn_labels
from tests.runs.tables import PAIR, ROWS, noted, refuses, task_of, write, write_features

# --- columns


@pytest.mark.parametrize(
    ("columns", "options", "texts"),
    [
        (["title", "body"], {}, ("title", "body")),
        (
            ["guid", "text", "doc_id", "pairID", "fine_label", "Category", "className", "targets"],
            {},
            ("text",),
        ),
        (["a", "b", "c"], {"text_columns": ["c", "a"]}, ("c", "a")),
        (["a", "id"], {"text_columns": ["id"]}, ("id",)),
    ],
)
def test_text_columns_found_or_named(tmp_path, columns, options, texts):
    rows = [{name: f"{name} {row}" for name in columns} | {"n": 1, "label": row % 2} for row in range(20)]
    task = task_of(write(tmp_path, train=rows, validation=rows), **options)
    assert task.text_columns == texts
    assert task.image_column is None
    assert task.splits["train"].column_names == [*texts, "labels", "index"]
    assert noted(task, f": {', '.join(texts)}; label column: label")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one or two text columns; found a, b, c; name them with text_columns=NAMES"),
        ({"text_columns": ["d"]}, "there is no column d; the columns are a (string), b (string), c (string)"),
        ({"text_columns": ["n"]}, "expected strings in the text column n; found int64"),
        (
            {"text_columns": ["a", "b", "c"]},
            "expected one or two text columns besides the label column label",
        ),
        ({"text_columns": ["a", "a"]}, "found a, a"),
        ({"text_columns": ["a"], "image_column": "b"}, "both are named: a and b"),
        ({"image_column": "a"}, "the column a is not an image column"),
        ({"label_column": "class"}, "there is no column class; the columns are a (string), b (string)"),
        ({"text_columns": ["index"]}, "input columns must not be named labels, index"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, options, message):
    row = {"a": "x", "b": "y", "c": "z", "n": 1, "index": "w"}
    refuses(message, write(tmp_path, train=[row | {"label": 0}, row | {"label": 1}]), **options)


def test_no_input_column(tmp_path):
    write(tmp_path, train=[{"n": 1, "id": "a", "label": 0}])
    refuses(
        "expected a text or image column besides the label column label; found the columns n (int64)",
        tmp_path,
    )


def test_a_split_must_have_the_columns_of_train(tmp_path):
    write(tmp_path, train=ROWS, validation=[{"sentence": "x", "label": 1}])
    refuses("the validation split has no column text; its columns are sentence (string)", tmp_path)
    write(tmp_path, validation=[{"text": 7, "label": 1}])
    refuses("the validation split's column text is int64; expected string, as in train", tmp_path)


def test_label_column_named_or_found(tmp_path):
    rows = [{"text": "x", "label": 0, "stars": row % 2} for row in range(20)]
    task = task_of(write(tmp_path, train=rows, validation=rows), label_column="stars")
    assert task.splits["validation"]["labels"][:4] == [0, 1, 0, 1]
    write(tmp_path, train=[{"text": "x", "labels": row % 2} for row in range(20)], validation=[])
    (tmp_path / "validation.jsonl").unlink()
    assert noted(task_of(str(tmp_path)), "label column: labels")


def test_the_only_class_label_column_is_the_label_and_gives_the_names(tmp_path):
    features = {"text": Value("string"), "mood": ClassLabel(names=["sad", "glad", "mad"])}
    write_features(tmp_path, features, train={"text": ["a", "b"] * 9, "mood": [1, 0] * 9})
    features["mood"] = ClassLabel(names=["glad", "sad"])
    write_features(tmp_path, features, test={"text": ["a", "b"], "mood": [0, 1]})
    task = task_of(str(tmp_path))
    assert task.label_names == ("sad", "glad", "mad")
    assert task.splits["test"]["labels"][:] == [1, 0]


@pytest.mark.parametrize(("names", "found"), [(["stars"], "none"), (["label", "labels"], "label, labels")])
def test_no_clear_label_column(tmp_path, names, found):
    write(tmp_path, train=[{"text": "x"} | dict.fromkeys(names, 1)])
    refuses(f"found {found} among the columns text (string), {names[0]} (int64)", tmp_path)


def test_text_is_preferred_to_an_image_unless_that_is_named(tmp_path):
    features = {"image": Image(), "text": Value("string"), "label": Value("int64")}
    image = PILImage.new("L", (2, 2))
    columns = {"image": [image] * 20, "text": [f"a {row}" for row in range(20)], "label": [0, 1] * 10}
    task = task_of(write_features(tmp_path, features, train=columns))
    assert (task.text_columns, task.image_column) == (("text",), None)
    assert noted(task, "not used: image")
    task = task_of(str(tmp_path), image_column="image")
    assert (task.text_columns, task.image_column) == ((), "image")
    assert noted(task, "not used: text")
    assert task.splits["train"].column_names == ["image", "labels", "index"]


def test_two_image_columns_and_a_missing_image(tmp_path):
    features = {"a": Image(), "b": Image(), "label": Value("int64")}
    image = PILImage.new("L", (2, 2))
    write_features(tmp_path, features, train={"a": [image] * 2, "b": [image, None], "label": [0, 1]})
    refuses("expected one image column; found a, b; name it with image_column=NAME", tmp_path)
    refuses(
        "train split's column b has no image in 1 of 2 rows, the first of them row 1",
        tmp_path,
        image_column="b",
    )


# --- labels


@pytest.mark.parametrize(
    ("labels", "encoded", "names", "note"),
    [
        ([1, 0, 2], [1, 0, 2], ("0", "1", "2"), None),
        ([5, -1, 1], [2, 0, 1], ("-1", "1", "5"), "labels mapped: -1 -> 0, 1 -> 1, 5 -> 2"),
        ([True, False, True], [1, 0, 1], ("False", "True"), "labels mapped: False -> 0, True -> 1"),
        (["b", "a", "NA"], [2, 1, 0], ("NA", "a", "b"), "labels mapped: 'NA' -> 0, 'a' -> 1, 'b' -> 2"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_labels_are_numbered_in_sorted_order(tmp_path, ending, labels, encoded, names, note):
    table = Dataset.from_dict({"text": ["null"] * 3, "label": labels})
    for split in ("train", "validation"):
        (table.to_csv if ending == "csv" else table.to_json)(tmp_path / f"{split}.{ending}")
    task = task_of(str(tmp_path))
    assert task.splits["train"]["labels"][:] == task.splits["validation"]["labels"][:] == encoded
    assert task.label_names == names
    assert note in task.notes if note else not noted(task, "mapped")


LABELS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=20, unique=True),
    st.lists(st.text().map(str.strip).filter(len), min_size=2, max_size=20, unique=True),
)


def test_spaces_around_a_label_are_no_part_of_it(tmp_path):
    rows = [{"text": f"x {row}", "label": ("pos", "neg", " pos", "neg\t")[row % 4]} for row in range(40)]
    task = task_of(write(tmp_path, train=rows, validation=rows[:4], test=[rows[0] | {"label": "  neg "}]))
    assert task.label_names == ("neg", "pos")
    assert task.splits["train"]["labels"][:4] == task.splits["validation"]["labels"][:] == [1, 0, 1, 0]
    assert task.splits["test"]["labels"][:] == [0]
    assert "spaces around labels removed: '  neg ', ' pos', 'neg\\t'" in task.notes


def test_spaces_around_the_names_of_class_labels(tmp_path):
    features = {"text": Value("string"), "label": ClassLabel(names=["pos", "neg ", " pos"])}
    write_features(tmp_path, features, train={"text": ["a", "b"] * 9, "label": [0, 1, 2] * 6})
    task = task_of(str(tmp_path))
    assert task.label_names == ("pos", "neg")
    rows = [*task.splits["train"], *task.splits["validation"]]
    assert {(row["index"] % 3, row["labels"]) for row in rows} == {(0, 0), (1, 1), (2, 0)}


def test_classes_that_differ_in_capital_letters_are_named(tmp_path):
    rows = [{"text": "x", "label": ("Pos", "pos", "neg")[row % 3]} for row in range(30)]
    task = task_of(write(tmp_path, train=rows, validation=rows))
    assert task.label_names == ("Pos", "neg", "pos")
    assert "classes that differ only in capital letters: 'Pos', 'pos'" in task.notes


@pytest.mark.parametrize(
    ("train", "other", "encoded"),
    [
        ([0, 1], ["1", " 0"], [1, 0]),
        (["0", "1"], [1, 0], [1, 0]),
        (["-1", "7"], [7, -1], [1, 0]),
        ([-1, 7], ["7", "-1"], [1, 0]),
        ([False, True], ["True", "False"], [1, 0]),
    ],
)
def test_a_label_is_the_same_as_a_number_and_as_text(tmp_path, train, other, encoded):
    splits = {
        split: [{"text": f"x {row}", "label": label} for row, label in enumerate(labels)]
        for split, labels in (("train", train * 5), ("validation", other))
    }
    assert task_of(write(tmp_path, **splits)).splits["validation"]["labels"][:] == encoded


@pytest.mark.parametrize("unknown", ["01", "1.0", "+1", "¹"])
def test_other_ways_to_write_a_number_are_other_labels(tmp_path, unknown):
    write(tmp_path, train=ROWS, validation=[{"text": "x", "label": unknown}])
    refuses(
        f"the validation split has labels that are not classes of train in 1 of 1 rows, the first of them row 0 "
        f"(counting from 0): {unknown!r}",
        tmp_path,
    )


@settings(max_examples=20, deadline=None)
@given(data=st.data(), classes=LABELS)
def test_any_labels_are_mapped_one_to_one_and_alike_in_every_split(data, classes):
    train = classes + data.draw(st.lists(st.sampled_from(classes), max_size=20))
    other = data.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=20))
    splits = {"train": Dataset.from_dict({"y": train}), "test": Dataset.from_dict({"y": other})}
    labels = learn_labels(splits, "y")
    encoded = {split: labels.encode(split, rows, "y").tolist() for split, rows in splits.items()}
    pairs = set(zip(train, encoded["train"], strict=True))
    assert len(pairs) == len(classes)
    assert {number for _, number in pairs} == set(range(len(classes)))
    assert set(zip(other, encoded["test"], strict=True)) <= pairs
    assert all(labels.names[number] == str(value) for value, number in pairs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[0], [1]],
            "expected labels that are ints, bools, strings or class labels, or floats to predict; found List(",
        ),
        (
            [1, None, None],
            "train split has no label in 2 of 3 rows, the first of them row 1 (counting from 0)",
        ),
        (
            ["a", " ", "b"],
            "train split has no label in 1 of 3 rows, the first of them row 1 (counting from 0)",
        ),
        ([1, 1, 1], "expected at least two classes in train; all 3 rows have the label 1"),
        (["a", "a"], "expected at least two classes in train; all 2 rows have the label 'a'"),
    ],
)
def test_labels_of_train_that_cannot_be_used(tmp_path, labels, message):
    refuses(message, write(tmp_path, train=[{"text": "x", "label": label} for label in labels]))


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 2, 2],
            "labels that are not classes of train in 2 of 3 rows, the first of them row 1 (counting from 0): 2;",
        ),
        (
            [0, -1],
            "labels that are not classes of train in 1 of 2 rows, the first of them row 1 (counting from 0): -1;",
        ),
        (
            ["0", "one"],
            "labels that are not classes of train in 1 of 2 rows, the first of them row 1 (counting from 0): 'one';",
        ),
        ([0, None], "no label in 1 of 2 rows, the first of them row 1"),
    ],
)
def test_labels_of_other_splits_must_be_those_of_train(tmp_path, split, labels, message):
    rows = [{"text": "x", "label": label} for label in labels]
    refuses(f"the {split} split has {message}", write(tmp_path, train=ROWS, **{split: rows}))


def test_a_class_label_outside_its_names_is_refused(tmp_path):
    features = {"text": Value("string"), "label": ClassLabel(names=["a", "b"])}
    schema = Features(features).arrow_schema
    pq.write_table(pa.table({"text": ["x"] * 3, "label": [0, 1, 7]}, schema), tmp_path / "train.parquet")
    refuses(
        "labels that are not classes of train in 1 of 3 rows, the first of them row 2 (counting from 0): 7;",
        tmp_path,
    )


@pytest.mark.parametrize("label", [{"label": -1}, {"label": None}, {}])
def test_splits_without_labels_are_left_out(tmp_path, label):
    unlabelled = [{"text": " "} | label] * 3
    task = task_of(write(tmp_path, train=ROWS, validation=unlabelled, test=unlabelled))
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 18, "validation": 2}
    assert noted(task, "the test split has no labels and is left out")
    assert noted(task, "the validation split has no labels and is left out")


def test_minus_one_may_be_a_class(tmp_path):
    rows = [{"text": "x", "label": label} for label in (-1, 1)]
    task = task_of(write(tmp_path, train=rows * 5, test=rows[:1]))
    assert task.splits["test"]["labels"][:] == [0]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("blank", [None, "", " \t\n"])
def test_empty_text_is_refused(tmp_path, split, blank):
    rows = [{"a": "x", "b": text, "label": row % 2} for row, text in enumerate(["y", blank, "z", blank])]
    good = [{"a": "x", "b": "y", "label": row % 2} for row in range(4)]
    write(tmp_path, **({"train": good, "validation": good, "test": good} | {split: rows}))
    refuses(
        f"the {split} split's column b has no text in 2 of 4 rows, the first of them row 1 (counting from 0)",
        tmp_path,
    )


# --- rows taken out of train


def test_a_tenth_of_train_is_held_out_by_class(tmp_path):
    rows = [{"text": f"{row}", "label": int(row % 10 == 0)} for row in range(200)]
    task = task_of(write(tmp_path, train=rows))
    train, validation = task.splits["train"], task.splits["validation"]
    assert sorted(train["index"][:] + validation["index"][:]) == list(range(200))
    assert np.bincount(validation["labels"][:]).tolist() == [18, 2]
    assert noted(task, "held out 20 of 200 training examples (stratified by class)")
    assert validation["text"][:] == [str(row) for row in validation["index"]]
    smaller = task_of(str(tmp_path), train_examples=50)
    assert smaller.splits["validation"][:] == validation[:]


@pytest.mark.parametrize("counts", [(2, 1), (30, 1), (5, 1, 1, 1), (3, 3, 3)])
def test_train_keeps_every_class_when_holding_out(tmp_path, counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    task = task_of(write(tmp_path, train=[{"text": "x", "label": label} for label in labels]))
    assert set(task.splits["train"]["labels"]) == set(range(len(counts)))
    assert len(task.splits["validation"]) == max(1, round(len(labels) / 10))
    assert noted(task, "not stratified")


def test_nothing_to_hold_out(tmp_path):
    refuses("found 2 training examples of 2 classes", write(tmp_path, train=PAIR))


def test_train_examples_are_a_fixed_random_subset_with_every_class(tmp_path):
    rows = [{"text": "x", "label": max(0, row - 97)} for row in range(100)]
    write(tmp_path, train=rows, validation=rows)
    for count in (3, 10, 100):
        train = task_of(str(tmp_path), train_examples=count).splits["train"]
        assert len(set(train["index"])) == len(train) == count
        assert set(train["labels"]) == {0, 1, 2}
    ten = task_of(str(tmp_path), train_examples=10)
    assert (
        ten.splits["train"]["index"][:]
        == task_of(str(tmp_path), train_examples=10).splits["train"]["index"][:]
    )
    assert noted(ten, "training on 10 of 100 examples")


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (21, "expected at most 20 training examples, as many as there are; found 21"),
        (1, "expected at least one training example for each of 2 classes; found 1"),
    ],
)
def test_train_examples_out_of_range(tmp_path, count, message):
    refuses(message, write(tmp_path, train=ROWS, validation=PAIR), train_examples=count)
