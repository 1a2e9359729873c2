"""Where data comes from: folders, files, splits, the hub, and the real data sets."""

import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from crisp_attention.cli.main import main
from crisp_attention.errors import DataError
from crisp_attention.runs.data import load as data_source
from tests.runs.tables import PAIR, ROWS, noted, refuses, task_of, write


def test_digits_are_the_300_and_1497_images_of_scikit_learn():
    task = task_of("builtin:digits")
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


FORMATS = ["parquet", "csv", "tsv", "jsonl", "json", "csv.gz", "tsv.gz", "jsonl.gz", "json.gz"]


def save(rows: list[dict], file: Path) -> None:
    """As pandas writes the format that the file's name ends in, compressed where it says so."""
    table, ending = pd.DataFrame(rows), file.name.removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        table.to_parquet(file, index=False)
    elif ending in ("csv", "tsv"):
        table.to_csv(file, index=False, sep={"csv": ",", "tsv": "\t"}[ending])
    else:
        table.to_json(file, orient="records", lines=ending == "jsonl")


@pytest.mark.parametrize("ending", FORMATS)
def test_each_file_format_is_read(tmp_path, ending):
    for split, rows in {"train": ROWS, "dev": PAIR, "test": PAIR}.items():
        save(rows, tmp_path / f"{split}.{ending}")
    task = task_of(str(tmp_path))
    assert list(task.splits) == ["train", "validation", "test"]
    assert task.splits["validation"][:] == {"text": ["good", "bad"], "labels": [1, 0], "index": [0, 1]}
    assert len(task.splits["train"]) == 20


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_by_any_of_its_names(tmp_path, name):
    assert len(task_of(write(tmp_path, train=ROWS, **{name: PAIR})).splits["validation"]) == 2


def test_splits_may_differ_in_format_and_columns_and_the_path_may_hold_wildcards(tmp_path):
    folder = tmp_path / "a[b]*c"
    folder.mkdir()
    (folder / "train.csv").write_text("id,text,label\n" + "1,good,1\n2,bad,0\n" * 5)
    task = task_of(write(folder, validation=PAIR))
    assert task.splits["validation"]["labels"][:] == [1, 0]


def test_parts_are_read_in_order_and_other_files_are_not_read(tmp_path):
    for part in range(3):
        rows = [{"text": f"{part}-{row}", "label": row % 2} for row in range(4)]
        Dataset.from_list(rows).to_parquet(tmp_path / f"train-0000{part}-of-00003.parquet")
    (tmp_path / "extra.parquet").write_text("not read")
    (tmp_path / "dataset_infos.json").write_text("not read")
    write(tmp_path, validation=PAIR)
    task = task_of(str(tmp_path))
    rows = task.splits["train"]
    assert rows["text"][:] == [f"{part}-{row}" for part in range(3) for row in range(4)]
    assert "files not used: extra.parquet" in task.notes
    assert rows["index"][:] == list(range(12))


def test_a_missing_part_is_refused(tmp_path):
    Dataset.from_list(ROWS).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    refuses("expected 2 parts of the train split", tmp_path)


def test_two_sources_for_one_split_are_refused(tmp_path):
    write(tmp_path, train=ROWS, dev=PAIR, valid=PAIR)
    refuses("expected one file for the validation split, or its numbered parts; found dev.jsonl", tmp_path)


def test_nothing_is_written_beside_the_data(tmp_path):
    task_of(write(tmp_path, train=ROWS, validation=PAIR))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.jsonl", "validation.jsonl"]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "jsonl.gz"])
def test_changed_files_are_read_again_even_if_their_times_and_sizes_are_the_same(tmp_path, ending):
    file = tmp_path / f"train.{ending}"
    for text in ("good", "fine", "well"):
        save([{"text": text, "label": 1}, {"text": "poor", "label": 0}] * 5, file)
        os.utime(file, (10**9, 10**9))
        assert task_of(str(file)).splits["train"]["text"][0] == text


def test_files_that_are_gone_or_renamed_are_not_read(tmp_path):
    write(tmp_path, train=ROWS, validation=PAIR, test=PAIR)
    assert set(task_of(str(tmp_path)).splits) == {"train", "validation", "test"}
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "train.jsonl").rename(tmp_path / "old.jsonl")
    (tmp_path / "validation.jsonl").rename(tmp_path / "train.jsonl")
    refuses("found 2 training examples of 2 classes", tmp_path)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_single_file_is_the_training_split(tmp_path, ending):
    file = tmp_path / f"reviews.{ending}"
    save(ROWS, file)
    (tmp_path / "validation.csv").write_text("not read")
    task = task_of(str(file))
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 18, "validation": 2}
    assert noted(task, "held out 2 of 20 training examples")


@pytest.mark.parametrize("together", [True, False])
def test_what_save_to_disk_left_is_read(tmp_path, together):
    rows = Dataset.from_list(ROWS).with_format("torch", columns=["label"])
    saved = datasets.DatasetDict({"train": rows, "dev": rows.select(range(3, 7))}) if together else rows
    saved.save_to_disk(tmp_path / "saved")
    before = sorted(tmp_path.rglob("*"))
    task = task_of(str(tmp_path / "saved"))
    sizes = {"train": 20, "validation": 4} if together else {"train": 18, "validation": 2}
    assert {split: len(rows) for split, rows in task.splits.items()} == sizes
    split = task.splits["validation"]
    assert [split["text"][0], split["labels"][0]] in (["good", 1], ["bad", 0])
    split.map(lambda row: {"letters": len(row["text"])})
    assert sorted(tmp_path.rglob("*")) == before
    next(tmp_path.rglob("*.arrow")).write_text("damaged")
    refuses(f"cannot read the data set saved in {tmp_path / 'saved'}: ", tmp_path / "saved")


def test_a_folder_without_splits_is_listed(tmp_path):
    (tmp_path / "data.xlsx").touch()
    (tmp_path / "raw").mkdir()
    refuses(
        "expected files named train, validation and test (.parquet, .csv, .tsv, .jsonl or .json;", tmp_path
    )
    refuses("found data.xlsx, raw/", tmp_path)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_path_to_nothing_is_named(path):
    refuses(f"expected a folder or a file; {path} does not exist", path)


def test_a_file_of_another_format_is_refused(tmp_path):
    file = tmp_path / "train.xlsx"
    file.touch()
    refuses("expected a file that ends in .parquet, .jsonl, .json, .csv, .tsv, .jsonl.gz", file)


@pytest.mark.parametrize("name", ["csv", "csv:train"])
def test_the_name_of_a_format_does_not_read_the_working_folder(name):
    refuses("found the file format csv", name)


def test_the_hubs_reason_is_given_in_one_line():
    with pytest.raises(
        DataError, match=r"^no/such-set is not a local folder or file .*Couldn't reach 'no/such-set'.*$"
    ):
        task_of("no/such-set")


@pytest.fixture
def hub(monkeypatch):
    """A hub of one data set; what was asked of it, in the order of asking."""
    found = {"train": Dataset.from_list(ROWS), "dev": Dataset.from_list(PAIR)}
    asked = []

    def load(name, configuration=None, *, revision=None):
        asked.append((name, configuration, revision))
        return datasets.DatasetDict(found)

    monkeypatch.setattr(data_source, "load_dataset", load)
    return found, asked


def test_a_data_set_of_the_hub(hub):
    found, _ = hub
    found["unsupervised"] = found["train"]
    task = task_of("some/set")
    assert list(task.splits) == ["train", "validation"]
    assert "splits not used: unsupervised" in task.notes
    found["validation"] = found["train"]
    refuses("some/set: expected one validation split; found the splits train, dev, unsupervised", "some/set")


def test_a_configuration_and_a_revision_of_the_hub(hub):
    task_of("nyu-mll/glue:sst2")
    task_of("some/set", revision="v2")
    assert hub[1] == [("nyu-mll/glue", "sst2", None), ("some/set", None, "v2")]


@pytest.mark.parametrize("command", ["finetune", "profile", "sweep"])
def test_commands_ask_the_hub_for_the_configuration_and_the_revision(hub, tmp_path, monkeypatch, command):
    output = ["--output", str(tmp_path / "out")]
    words = ["--model", "/no/model", "--dataset", "some/set:plain", "--revision", "v2", *output]
    monkeypatch.setattr(sys, "argv", ["crisp", command, *words])
    with pytest.raises(SystemExit):
        main()
    assert hub[1] == [("some/set", "plain", "v2")]


def test_a_revision_of_what_is_not_on_the_hub_is_refused(tmp_path):
    for dataset in (write(tmp_path, train=ROWS), str(tmp_path / "train.jsonl"), "builtin:digits", "./none"):
        refuses(
            f"revision main needs a data set of the Hub; {dataset} is not one",
            dataset,
            revision="main",
        )


def test_a_missing_configuration_is_asked_for(monkeypatch):
    def load(*given, **named):
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\n…"
        )

    monkeypatch.setattr(data_source, "load_dataset", load)
    refuses(
        "expected one of its configurations, as in some/set:CONFIGURATION; Please pick one among the available "
        "configs: ['a', 'b']",
        "some/set",
    )


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
    task = task_of(str(data_folder / name))
    assert {split: len(rows) for split, rows in task.splits.items()} == sizes
    assert task.text_columns == texts
    assert task.label_names == tuple(str(label) for label in range(classes))
    for split, rows in task.splits.items():
        assert set(rows["labels"]) == set(range(classes)), split
    file = pq.read_table(data_folder / name / "train.parquet")
    row = task.splits["train"][-1]
    assert row["labels"] == file["label"][row["index"]].as_py()
    assert all(row[column] == file[column][row["index"]].as_py() for column in texts)
