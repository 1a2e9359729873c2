"""Where data comes from: folders, files, splits, the hub, and the real data sets."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image as PILImage

from crisp_attention.training.data import DataError, load_task
from crisp_attention.training.data import source as data_source
from tests.training.tables import PAIR, ROWS, refuses, write


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
