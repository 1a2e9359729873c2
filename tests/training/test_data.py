import json
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from crisp_attention.training.data import DataError, Task, load_task
from crisp_attention.training.data import source as data_source
from crisp_attention.training.data.labels import complete, label_values, learn_labels

PAIR = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
ROWS = PAIR * 10


def write(folder: Path, **splits: list[dict]) -> str:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def write_features(folder: Path, features: dict, **splits: dict) -> str:
    for split, columns in splits.items():
        Dataset.from_dict(columns, Features(features)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def refuses(message: str, dataset: str | Path, **options) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_task(str(dataset), **options)


def noted(task: Task, words: str) -> bool:
    return any(words in note for note in task.notes)


# --- where it comes from


def test_digits_are_the_300_and_1497_images_of_scikit_learn():
    task = load_task("builtin:digits")
    assert {split: len(rows) for split, rows in task.splits.items()} == {
        "train": 270,
        "validation": 30,
        "test": 1497,
    }
    assert task.image_column == "image"
    assert task.text_columns == ()
    assert task.label_names == tuple("0123456789")
    assert np.bincount(task.splits["validation"]["labels"][:]).tolist() == [3] * 10
    images = np.array([np.asarray(image) for image in task.splits["test"]["image"]])
    assert images.shape == (1497, 8, 8)
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}


def test_another_builtin_is_refused():
    refuses("expected the built-in data set builtin:digits; found builtin:mnist", "builtin:mnist")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl", "json"])
def test_each_file_format_is_read(tmp_path, ending):
    for split, rows in {"train": ROWS, "dev": PAIR, "test": PAIR}.items():
        file, table = tmp_path / f"{split}.{ending}", Dataset.from_list(rows)
        if ending == "json":
            file.write_text(json.dumps(rows))
        else:
            {"parquet": table.to_parquet, "csv": table.to_csv, "jsonl": table.to_json}[ending](file)
    task = load_task(str(tmp_path))
    assert list(task.splits) == ["train", "validation", "test"]
    assert task.splits["validation"][:] == {"text": ["good", "bad"], "labels": [1, 0], "index": [0, 1]}
    assert len(task.splits["train"]) == 20


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_by_any_of_its_names(tmp_path, name):
    assert len(load_task(write(tmp_path, train=ROWS, **{name: PAIR})).splits["validation"]) == 2


def test_splits_may_differ_in_format_and_columns_and_the_path_may_hold_wildcards(tmp_path):
    folder = tmp_path / "a[b]*c"
    folder.mkdir()
    (folder / "train.csv").write_text("id,text,label\n" + "1,good,1\n2,bad,0\n" * 5)
    task = load_task(write(folder, validation=PAIR))
    assert task.splits["validation"]["labels"][:] == [1, 0]


def test_parts_are_read_in_order_and_other_files_are_not_read(tmp_path):
    for part in range(3):
        rows = [{"text": f"{part}-{row}", "label": row % 2} for row in range(4)]
        Dataset.from_list(rows).to_parquet(tmp_path / f"train-0000{part}-of-00003.parquet")
    (tmp_path / "extra.parquet").write_text("not read")
    (tmp_path / "dataset_infos.json").write_text("not read")
    write(tmp_path, validation=PAIR)
    rows = load_task(str(tmp_path)).splits["train"]
    assert rows["text"][:] == [f"{part}-{row}" for part in range(3) for row in range(4)]
    assert rows["index"][:] == list(range(12))


def test_a_missing_part_is_refused(tmp_path):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    refuses("expected 2 parts of the train split", tmp_path)


def test_two_sources_for_one_split_are_refused(tmp_path):
    write(tmp_path, train=ROWS, dev=PAIR, valid=PAIR)
    refuses("expected one file for the validation split, or its numbered parts; found dev.jsonl", tmp_path)


def test_folders_of_images(tmp_path):
    for split, classes in {"train": ["cat", "dog", "emu"], "val": ["dog", "emu"]}.items():
        for shade, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True)
            PILImage.new("L", (4, 4), shade).save(tmp_path / split / name / "1.png")
    task = load_task(str(tmp_path))
    assert task.label_names == ("cat", "dog", "emu")
    assert task.splits["validation"]["labels"][:] == [1, 2]
    assert task.splits["train"][2]["image"].getpixel((0, 0)) == 2


def test_nothing_is_written_beside_the_data(tmp_path):
    load_task(write(tmp_path, train=ROWS, validation=PAIR))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.jsonl", "validation.jsonl"]


def test_changed_files_are_read_anew(tmp_path):
    load_task(write(tmp_path, train=ROWS, validation=PAIR))
    assert len(load_task(write(tmp_path, train=ROWS + PAIR, validation=PAIR)).splits["train"]) == 22


def test_a_folder_without_splits_is_listed(tmp_path):
    (tmp_path / "data.xlsx").touch()
    (tmp_path / "raw").mkdir()
    refuses("expected files named train, validation and test (.parquet, .csv, .jsonl or .json;", tmp_path)
    refuses("found data.xlsx, raw/", tmp_path)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_path_to_nothing_is_named(path):
    refuses(f"expected a folder; {path} does not exist", path)


def test_a_file_is_no_data_set(tmp_path):
    file = tmp_path / "train.csv"
    file.touch()
    refuses(f"{file} is a file", file)


def test_the_name_of_a_format_does_not_read_the_working_folder():
    refuses("found the file format csv", "csv")


def test_the_hubs_reason_is_given_in_one_line():
    with pytest.raises(DataError, match=r"^no/such-set is no local folder .*Couldn't reach 'no/such-set'.*$"):
        load_task("no/such-set")


def test_a_data_set_of_the_hub(monkeypatch):
    rows = Dataset.from_list(ROWS)
    found = {"train": rows, "dev": rows, "unsupervised": rows}
    monkeypatch.setattr(data_source, "load_dataset", lambda dataset: datasets.DatasetDict(found))
    task = load_task("some/set")
    assert list(task.splits) == ["train", "validation"]
    assert "splits not used: unsupervised" in task.notes
    found["validation"] = rows
    refuses("some/set: expected one validation split; found the splits train, dev, unsupervised", "some/set")


def test_a_damaged_file_is_named(tmp_path):
    for part in range(2):
        Dataset.from_list(ROWS).to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    damaged = tmp_path / "train-00001-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    refuses(f"cannot read the train split from {damaged}: ArrowInvalid: Parquet magic bytes not", tmp_path)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_is_refused(tmp_path, split):
    write(tmp_path, **({"train": ROWS, "validation": PAIR, "test": PAIR} | {split: []}))
    refuses(f"{split}.jsonl is empty (0 bytes): expected the rows of the {split} split", tmp_path)


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_a_file_without_rows_is_refused(tmp_path, ending):
    file = tmp_path / f"train.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"text": pa.array([], "string"), "label": pa.array([], "int64")}), file)
    else:
        file.write_text({"csv": "text,label\n", "json": "[]"}[ending])
    refuses(f"the train split is empty: expected rows in {file}; found none", tmp_path)


def test_no_train_split_is_refused(tmp_path):
    write(tmp_path, dev=PAIR, test=PAIR)
    refuses("expected a train split; found the splits validation, test", tmp_path)


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
    task = load_task(write(tmp_path, train=rows, validation=rows), **options)
    assert task.text_columns == texts
    assert task.image_column is None
    assert task.splits["train"].column_names == [*texts, "labels", "index"]
    assert noted(task, f": {', '.join(texts)}; label column: label")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one or two text columns; found a, b, c; name them with --text-columns"),
        ({"text_columns": ["d"]}, "there is no column d; the columns are a (string), b (string), c (string)"),
        ({"text_columns": ["n"]}, "expected strings in the text column n; found int64"),
        ({"text_columns": ["a", "b", "c"]}, "expected one or two text columns beside the label column label"),
        ({"text_columns": ["a", "a"]}, "found a, a"),
        ({"text_columns": ["a"], "image_column": "b"}, "both are named: a and b"),
        ({"image_column": "a"}, "the column a is no image column"),
        ({"label_column": "class"}, "there is no column class; the columns are a (string), b (string)"),
        ({"text_columns": ["index"]}, "expected inputs not named labels, index"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, options, message):
    row = {"a": "x", "b": "y", "c": "z", "n": 1, "index": "w"}
    refuses(message, write(tmp_path, train=[row | {"label": 0}, row | {"label": 1}]), **options)


def test_no_input_column(tmp_path):
    write(tmp_path, train=[{"n": 1, "id": "a", "label": 0}])
    refuses(
        "expected a text or image column beside the label column label; found the columns n (int64)", tmp_path
    )


def test_a_split_must_have_the_columns_of_train(tmp_path):
    write(tmp_path, train=ROWS, validation=[{"sentence": "x", "label": 1}])
    refuses("the validation split has no column text; its columns are sentence (string)", tmp_path)
    write(tmp_path, validation=[{"text": 7, "label": 1}])
    refuses("the validation split's column text is int64; expected string, as in train", tmp_path)


def test_label_column_named_or_found(tmp_path):
    rows = [{"text": "x", "label": 0, "stars": row % 2} for row in range(20)]
    task = load_task(write(tmp_path, train=rows, validation=rows), label_column="stars")
    assert task.splits["validation"]["labels"][:4] == [0, 1, 0, 1]
    write(tmp_path, train=[{"text": "x", "labels": row % 2} for row in range(20)], validation=[])
    (tmp_path / "validation.jsonl").unlink()
    assert noted(load_task(str(tmp_path)), "label column: labels")


def test_the_only_class_label_column_is_the_label_and_gives_the_names(tmp_path):
    features = {"text": Value("string"), "mood": ClassLabel(names=["sad", "glad", "mad"])}
    write_features(tmp_path, features, train={"text": ["a", "b"] * 9, "mood": [1, 0] * 9})
    features["mood"] = ClassLabel(names=["glad", "sad"])
    write_features(tmp_path, features, test={"text": ["a", "b"], "mood": [0, 1]})
    task = load_task(str(tmp_path))
    assert task.label_names == ("sad", "glad", "mad")
    assert task.splits["test"]["labels"][:] == [1, 0]


@pytest.mark.parametrize(("names", "found"), [(["stars"], "none"), (["label", "labels"], "label, labels")])
def test_no_clear_label_column(tmp_path, names, found):
    write(tmp_path, train=[{"text": "x"} | dict.fromkeys(names, 1)])
    refuses(f"found {found} among the columns text (string), {names[0]} (int64)", tmp_path)


def test_text_is_preferred_to_an_image_unless_that_is_named(tmp_path):
    features = {"image": Image(), "text": Value("string"), "label": Value("int64")}
    image = PILImage.new("L", (2, 2))
    columns = {"image": [image] * 20, "text": ["x"] * 20, "label": [0, 1] * 10}
    task = load_task(write_features(tmp_path, features, train=columns))
    assert (task.text_columns, task.image_column) == (("text",), None)
    assert noted(task, "not used: image")
    task = load_task(str(tmp_path), image_column="image")
    assert (task.text_columns, task.image_column) == ((), "image")
    assert noted(task, "not used: text")
    assert task.splits["train"].column_names == ["image", "labels", "index"]


def test_two_image_columns_and_a_missing_image(tmp_path):
    features = {"a": Image(), "b": Image(), "label": Value("int64")}
    image = PILImage.new("L", (2, 2))
    write_features(tmp_path, features, train={"a": [image] * 2, "b": [image, None], "label": [0, 1]})
    refuses("expected one image column; found a, b; name it with --image-column", tmp_path)
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
    task = load_task(str(tmp_path))
    assert task.splits["train"]["labels"][:] == task.splits["validation"]["labels"][:] == encoded
    assert task.label_names == names
    assert note in task.notes if note else not noted(task, "mapped")


LABELS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=20, unique=True),
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=20, unique=True),
)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), classes=LABELS)
def test_any_labels_are_mapped_one_to_one_and_alike_in_every_split(data, classes):
    train = classes + data.draw(st.lists(st.sampled_from(classes), max_size=20))
    other = data.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=20))
    splits = {"train": Dataset.from_dict({"y": train}), "test": Dataset.from_dict({"y": other})}
    values = {split: complete(split, label_values(split, rows, "y")) for split, rows in splits.items()}
    labels = learn_labels(splits["train"], "y", values["train"])
    encoded = {split: labels.encode(split, values[split]).tolist() for split in splits}
    pairs = set(zip(train, encoded["train"], strict=True))
    assert len(pairs) == len(classes)
    assert {number for _, number in pairs} == set(range(len(classes)))
    assert set(zip(other, encoded["test"], strict=True)) <= pairs
    assert all(labels.names[number] == str(value) for value, number in pairs)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0.5, 1.0],
            "regression is not supported; found Value('float64') in the train split's column label, such",
        ),
        ([[0], [1]], "expected labels that are ints, bools, strings or class labels; found List("),
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
            "labels that are no class of train in 2 of 3 rows, the first of them row 1 (counting from 0): 2;",
        ),
        (
            [0, -1],
            "labels that are no class of train in 1 of 2 rows, the first of them row 1 (counting from 0): -1;",
        ),
        (
            ["0", "1"],
            "labels that are no class of train in 2 of 2 rows, the first of them row 0 (counting from 0): '0', '1';",
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
        "labels that are no class of train in 1 of 3 rows, the first of them row 2 (counting from 0): 7;",
        tmp_path,
    )


@pytest.mark.parametrize("label", [{"label": -1}, {"label": None}, {}])
def test_splits_without_labels_are_left_out(tmp_path, label):
    unlabelled = [{"text": " "} | label] * 3
    task = load_task(write(tmp_path, train=ROWS, validation=unlabelled, test=unlabelled))
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 18, "validation": 2}
    assert noted(task, "the test split has no labels and is left out")
    assert noted(task, "the validation split has no labels and is left out")


def test_minus_one_may_be_a_class(tmp_path):
    rows = [{"text": "x", "label": label} for label in (-1, 1)]
    task = load_task(write(tmp_path, train=rows * 5, test=rows[:1]))
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
    task = load_task(write(tmp_path, train=rows))
    train, validation = task.splits["train"], task.splits["validation"]
    assert sorted(train["index"][:] + validation["index"][:]) == list(range(200))
    assert np.bincount(validation["labels"][:]).tolist() == [18, 2]
    assert noted(task, "held out 20 of 200 training examples (stratified by class)")
    assert validation["text"][:] == [str(row) for row in validation["index"]]
    smaller = load_task(str(tmp_path), train_examples=50)
    assert smaller.splits["validation"][:] == validation[:]


@pytest.mark.parametrize("counts", [(2, 1), (30, 1), (5, 1, 1, 1), (3, 3, 3)])
def test_train_keeps_every_class_when_holding_out(tmp_path, counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    task = load_task(write(tmp_path, train=[{"text": "x", "label": label} for label in labels]))
    assert set(task.splits["train"]["labels"]) == set(range(len(counts)))
    assert len(task.splits["validation"]) == max(1, round(len(labels) / 10))
    assert noted(task, "not stratified")


def test_nothing_to_hold_out(tmp_path):
    refuses("found 2 training examples of 2 classes", write(tmp_path, train=PAIR))


def test_train_examples_are_a_fixed_random_subset_with_every_class(tmp_path):
    rows = [{"text": "x", "label": max(0, row - 97)} for row in range(100)]
    write(tmp_path, train=rows, validation=rows)
    for count in (3, 10, 100):
        train = load_task(str(tmp_path), train_examples=count).splits["train"]
        assert len(set(train["index"])) == len(train) == count
        assert set(train["labels"]) == {0, 1, 2}
    ten = load_task(str(tmp_path), train_examples=10)
    assert (
        ten.splits["train"]["index"][:]
        == load_task(str(tmp_path), train_examples=10).splits["train"]["index"][:]
    )
    assert noted(ten, "training on 10 of 100 examples")


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (21, "expected at most 20 training examples, as many as there are; found 21"),
        (1, "expected at least one training example for each of 2 classes; found 1"),
        (-5, "expected at least one training example for each of 2 classes; found -5"),
    ],
)
def test_train_examples_out_of_range(tmp_path, count, message):
    refuses(message, write(tmp_path, train=ROWS, validation=PAIR), train_examples=count)


# --- the real data sets


@pytest.mark.parametrize(
    ("name", "texts", "classes", "sizes"),
    [
        ("sst2", ("sentence",), 2, {"train": 67_349, "validation": 872, "test": 1_821}),
        ("rte", ("sentence1", "sentence2"), 2, {"train": 2_490, "validation": 277}),
        ("cola", ("sentence",), 2, {"train": 8_551, "validation": 1_043}),
        ("trec", ("sentence",), 6, {"train": 4_907, "validation": 545, "test": 500}),
    ],
)
def test_real_data(data_folder, name, texts, classes, sizes):
    task = load_task(str(data_folder / name))
    assert {split: len(rows) for split, rows in task.splits.items()} == sizes
    assert task.text_columns == texts
    assert task.label_names == tuple(str(label) for label in range(classes))
    for split, rows in task.splits.items():
        assert set(rows["labels"]) == set(range(classes)), split
    file = pq.read_table(data_folder / name / "train.parquet")
    row = task.splits["train"][-1]
    assert row["labels"] == file["label"][row["index"]].as_py()
    assert all(row[column] == file[column][row["index"]].as_py() for column in texts)
