"""Models with a method in each layer, and what they read: for programs that are recorded, compiled or exported."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from crisp_attention.methods.method import AnyMethod
from tests.contract.rows import sparse
from tests.models.tiny import GROUPED, noisy
from tests.table import ROWS


def tokens(length: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Three examples of several lengths, padded on one side."""
    ids = torch.randint(5, 64, (3, length), generator=torch.Generator().manual_seed(length))
    lengths = torch.tensor([length, max(1, length // 2), max(1, length - 1)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return ids, mask if side == "right" else mask.flip(-1)


def layers(*methods: AnyMethod) -> dict[str, AnyMethod]:
    return {str(index): method for index, method in enumerate(methods)}


def bert(*methods: AnyMethod) -> nn.Module:
    """A small BERT with a method for each layer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(num_hidden_layers=len(methods), max_position_embeddings=64, **sizes)
    return sparse(noisy(BertModel(config, add_pooling_layer=False)), layers=layers(*methods))


def llama(*methods: AnyMethod) -> nn.Module:
    """A small Llama with a method for each layer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**GROUPED | sizes | {"num_hidden_layers": len(methods)})
    return sparse(noisy(LlamaForCausalLM(config)), layers=layers(*methods))


def every_second_method(build: Callable[..., nn.Module]) -> list[AnyMethod]:
    """Half of the methods for BERT and the other half for Llama."""
    rows = [row for row in ROWS.values() if row.causal] if build is llama else list(ROWS.values())
    return [row.method for row in rows[build is llama :: 2]]
