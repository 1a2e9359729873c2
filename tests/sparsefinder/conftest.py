from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import crisp_attention as crisp
from crisp_attention.methods.layouts.sparsefinder import fitting


@pytest.fixture(autouse=True, scope="session")
def _own_cache(own_cache) -> None:
    pass


@pytest.fixture(scope="session")
def trained(bert, tmp_path_factory) -> Path:
    """A BERT with large weights: two layers with entmax of learned alphas, one with top-k."""
    folder = tmp_path_factory.mktemp("trained")
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    torch.manual_seed(0)
    for layer in model.bert.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key):
            torch.nn.init.normal_(part.weight, std=1.0)
    crisp.sparsify(model, layers={"0-1": crisp.Entmax("learned"), 2: crisp.TopK(0.5)})
    for name, value in model.named_parameters():
        if "crisp_learned" in name:
            value.data += torch.tensor([0.002, -0.003])
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch) -> None:
    """Fitting ends early: what is learned is not looked at here."""
    monkeypatch.setattr(fitting, "STEPS", 50)
