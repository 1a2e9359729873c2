"""A model and an adapter that version 0.1.0 saved, and the logits it computed: both are still what they were.

`tests/saved` was written at commit baed801: a BERT with entmax of a learned α in one layer and top-k in the
other, and a LoRA adapter with another α and blocks.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import crisp_attention as crisp
from tests.models.adapted import quiet

SAVED = Path(__file__).resolve().parents[1] / "saved"
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 0, 0, 0]])


def check(model, name: str) -> None:
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=(IDS != 0).long()).logits
    torch.testing.assert_close(found, load_file(SAVED / "logits.safetensors")[name], rtol=1e-5, atol=1e-6)


def test_a_model_is_loaded() -> None:
    check(crisp.load(SAVED / "bert"), "bert")


@quiet
def test_an_adapter_is_loaded_with_its_model(tmp_path) -> None:
    shutil.copytree(SAVED / "adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(SAVED / "bert")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    check(crisp.load(tmp_path), "adapter")


@quiet
def test_an_adapter_is_restored_on_a_dense_and_loaded_into_a_sparse_model() -> None:
    base = crisp.densify(crisp.load(SAVED / "bert"))
    with pytest.warns(crisp.SparseCheckpointLoadedDense):
        model = PeftModel.from_pretrained(base, SAVED / "adapter")
    check(crisp.restore(model), "adapter")
    base = crisp.load(SAVED / "bert")
    crisp.sparsify(base, layers={"0": crisp.Entmax("learned"), "1": crisp.BlockTopK(0.5, block_size=2)})
    check(PeftModel.from_pretrained(base, SAVED / "adapter"), "adapter")
