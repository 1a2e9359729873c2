"""Small models with PEFT's adapters."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn

from tests.models.tiny import BATCH

# PEFT 0.21 asks transformers for an attribute that 5.23 has renamed
quiet = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LABELLED = BATCH | {"labels": torch.tensor([0, 1])}


def lora(model: nn.Module, **changes) -> PeftModel:
    """`model`, a DistilBERT with a classifier, with a LoRA adapter that already changes what it computes."""
    torch.manual_seed(1)
    settings = {
        "task_type": TaskType.SEQ_CLS,
        "target_modules": ["q_lin", "v_lin"],
        "init_lora_weights": False,
    }
    return get_peft_model(model, LoraConfig(**settings | changes)).eval()


def trained(model: nn.Module, batch: dict[str, Tensor] = LABELLED) -> nn.Module:
    """The same model after a few steps on two examples, in evaluation mode again."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def recorded(folder: Path) -> dict | None:
    """The settings that lie in an adapter's folder."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return (config["auto_mapping"] or {}).get("crisp_attention")


def trainable(model: nn.Module, word: str) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and word in name]
