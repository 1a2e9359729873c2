"""An example's logits never depend on the rest of its batch, in a whole run and with the model that it leaves."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import BartConfig, BertConfig, GPT2Config, LlamaConfig, RobertaConfig

import crisp_attention as crisp
from crisp_attention.models.transformers.checkpoints import read_model
from crisp_attention.runs.sources import load_source
from tests.runs import small
from tests.runs.small import BODY
from tests.runs.tables import task_of
from tests.runs.test_agreement import BART, GPT2, LLAMA


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> str:
    return small.reviews(tmp_path_factory.mktemp("few"), train=8, other=11)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = np.random.default_rng(0)
    for split in ("train", "validation"):
        for number in range(6):
            (folder / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            pixels = drawn.integers(0, 255, (8 + number, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / "ab"[number % 2] / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "given", "method"),
    [
        (BertConfig(**BODY), {"padding_side": "left"}, "topk"),
        pytest.param(RobertaConfig(**BODY, pad_token_id=1), {}, "dense", marks=pytest.mark.slow),
        (
            GPT2Config(**GPT2),
            {"pad_token": None, "padding_side": "left"},
            "topk",
        ),  # pads with its end
        pytest.param(  # all texts end in it
            LlamaConfig(**LLAMA),
            {"pad_token": "[SEP]", "padding_side": "left"},
            "dense",
            marks=pytest.mark.slow,
        ),
        pytest.param(BartConfig(**BART), {}, "topk", marks=pytest.mark.slow),
        (small.convbert(), {}, "dense"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_texts(tmp_path, few, config, given, method):
    check(small.saved(tmp_path / "model", config, **given), few, tmp_path / "run", method)


def test_images(tmp_path, pictures):
    check(small.vit(tmp_path / "model", channels=1), pictures, tmp_path / "run", "topk")


def check(model: str, data: str, output, method: str) -> None:
    sparse = method != "dense"
    run = small.tuned(
        small.options(
            model,
            data,
            output,
            method=method,
            sparsity=0.5 if sparse else None,
            epochs=1.0,
            training=("use_cpu=true", "per_device_eval_batch_size=4"),
        )
    )
    logits = np.stack(pd.read_parquet(run.directory / "predictions-validation.parquet")["logits"])
    task = task_of(data)
    source = load_source(str(run.directory / "model"), task, None)
    trained = (
        crisp.load(run.directory / "model")
        if sparse
        else read_model(type(source.model), run.directory / "model")
    )
    trained.eval()
    split = task.splits["validation"]
    for batch_size, order in (
        (1, range(len(split))),
        (len(split), np.random.default_rng(0).permutation(len(split))),
    ):
        rows = list(source.encode(Dataset.from_dict(split[:], split.features)).select(order))
        batches = [source.collate(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
        with torch.no_grad():
            again = torch.cat([trained(**batch).logits for batch in batches]).numpy()
        np.testing.assert_allclose(again, logits[np.asarray(order)], rtol=1e-4, atol=1e-5)
    assert np.ptp(logits, axis=0).max() > 1e-3  # the examples do differ
