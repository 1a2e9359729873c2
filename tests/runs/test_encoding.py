"""What becomes of texts and images on their way into a model, through whole runs."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from PIL import Image as Pillow
from tokenizers import normalizers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from crisp_attention.errors import DataError
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.sources.encoding import WHOLE, check_tokens, count_cut, encoded, tokenized
from crisp_attention.runs.task import Classification, Task
from tests.runs import small
from tests.runs.tables import task_of, write

NOTHING = "\u200b"


@pytest.fixture(scope="module")
def tokenizer(bert) -> PreTrainedTokenizerFast:
    """Of `bert`, which makes nothing of a zero-width space."""
    made = AutoTokenizer.from_pretrained(bert)
    made.backend_tokenizer.normalizer = normalizers.Replace(NOTHING, "")
    return made


def texts(*pairs: tuple[str, ...]) -> Dataset:
    columns = {f"t{number}": list(column) for number, column in enumerate(zip(*pairs, strict=True))}
    return Dataset.from_dict(columns | {"index": [10 * row for row in range(len(pairs))]})


@pytest.mark.parametrize("columns", [("t0",), ("t0", "t1")])
@pytest.mark.parametrize("special", [True, False])
def test_tokens_are_counted_before_they_are_cut(tokenizer, columns, special):
    if not special:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=small._tokenizer(), unk_token="[UNK]", pad_token="[PAD]"
        )
    rows = texts(("the film", "was"), ("a plot " * 20, "dull " * 3), ("bad", "good"))
    found = tokenized(rows, tokenizer, columns, 12)
    added = (len(columns) + 1) * special
    expected = [sum(len(row[column].split()) for column in columns) + added for row in rows]
    assert found[WHOLE][:] == expected
    assert [len(ids) for ids in found["input_ids"]] == [min(length, 12) for length in expected]
    assert count_cut(found) == (1, 12, max(expected))
    check_tokens("train", rows, found, columns)


@pytest.mark.parametrize("row", [(NOTHING, "x"), ("x", NOTHING), (NOTHING, NOTHING)])
def test_a_text_without_a_token_is_named(tokenizer, row):
    rows = texts(("film", "film"), row, ("film", "film"), row)
    found = tokenized(rows, tokenizer, ("t0", "t1"), 12)
    message = (
        rf"the test split has a text of which the tokenizer makes no token in 2 of 4 rows, the first of them row 10 "
        rf"\(counting from 0\): t0 {row[0]!r}, t1 {row[1]!r}; expected text in every row"
    )
    with pytest.raises(DataError, match=message.replace("\\u", "\\\\u")):
        check_tokens("test", rows, found, ("t0", "t1"))
    if row[0] != NOTHING:
        check_tokens("test", rows, tokenized(rows, tokenizer, ("t0",), 12), ("t0",))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_decoder_meets_no_text_without_a_token(tmp_path, split):
    model = small.gpt2_without_padding(tmp_path)
    file = tmp_path / "tokenizer.json"
    made = json.loads(file.read_text())
    made["normalizer"] = {"type": "Replace", "pattern": {"String": NOTHING}, "content": ""}
    file.write_text(json.dumps(made))
    rows = [{"text": f"film {word}", "label": row % 2} for row, word in enumerate(small.WORDS[5:])]
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    splits[split] = [*rows, {"text": NOTHING, "label": 0}]
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=f"the {split} split has a text of which .* row {len(rows)} "):
        small.tuned(small.options(model, write(tmp_path / "data", **splits), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_says_how_many_texts_it_cut_and_where(bert, reviews, tmp_path):
    lengths = {
        split: np.array([2 + len(text.split()) for text in rows["text"]])
        for split, rows in task_of(reviews).splits.items()
    }
    run = small.tuned(
        small.options(bert, reviews, tmp_path / "run", max_length=6, epochs=1, discard_model=True)
    )
    train, validation, test = ((found > 6).sum() for found in lengths.values())
    assert 0 < train < 48
    assert (
        f"texts cut to 6 tokens: {train} of 48 train, {validation} of 16 validation, {test} of 16 test; "
        f"the longest has {max(found.max() for found in lengths.values())}"
    ) in json.loads((run.directory / "config.json").read_text())["notes"]


def test_where_nothing_is_cut_nothing_is_said(bert, reviews):
    task = task_of(reviews)
    assert encoded(load_source(bert, task, 64), task).notes == task.notes


def test_texts_that_were_cut_are_counted(bert, reviews):
    task = task_of(reviews)
    found = encoded(load_source(bert, task, 5), task)
    assert found.notes[-1].startswith("texts cut to 5 tokens: ")
    assert set(found.splits["train"].features) == {
        "labels",
        "index",
        "input_ids",
        "token_type_ids",
        "attention_mask",
    }


# --- images


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def shades(folder, values: np.ndarray) -> str:
    """Images of one 16-bit shade each, in the classes a and b by turns, in train and in validation."""
    for split in ("train", "validation"):
        for row, value in enumerate(values):
            path = folder / split / "ab"[row % 2]
            path.mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(np.full((8, 8), value, np.uint16)).save(path / f"{row:02}.png")
    return str(folder)


def test_sixteen_shades_of_twelve_bits_are_told_apart(vit, tmp_path):
    data = shades(tmp_path / "data", np.linspace(0, 4_095, 16).astype(np.uint16))
    run = small.tuned(small.options(vit, data, tmp_path / "run", epochs=1, discard_model=True))
    table = pd.read_parquet(run.directory / "predictions-validation.parquet")
    assert len(np.unique(np.round(np.stack(table["logits"]), 6), axis=0)) == 16
    notes = json.loads((run.directory / "config.json").read_text())["notes"]
    assert "16-bit images: grey values from 0 to 4,095 are scaled to 0 to 255" in notes


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("model", ["vit", "builtin:vit"])
def test_an_image_cut_short_is_named_before_training(vit, tmp_path, split, model):
    data = tmp_path / "data"
    shades(data, np.linspace(0, 255, 16).astype(np.uint16))
    for file in data.rglob("*.png"):
        Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    file = data / split / "a" / "02.png"
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(DataError, match=f"cannot read 1 of 16 images of the {split} split: {file} "):
        small.tuned(small.options({"vit": vit}.get(model, model), str(data), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_test_split_is_looked_through_as_well(vit):
    good = Pillow.new("RGB", (8, 8))
    rows = Dataset.from_dict({"image": [good, good], "labels": [0, 1], "index": [0, 1]})
    bad = Dataset.from_dict(
        {"image": [{"path": None, "bytes": b"x"}], "labels": [0], "index": [5]}, features=rows.features
    )
    with pytest.raises(DataError, match=r"of the test split: row 5 \(no image\)"):
        load_source(
            vit, Task({"train": rows, "test": bad}, (), "image", Classification(("a", "b")), ()), None
        )
