"""Small models for the tests of the integration."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from crisp_attention.models.host import AttentionLayer, host_of
from crisp_attention.models.settings import Settings, settings_on
from crisp_attention.models.sparse_model import SparseModel, carrying

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 1, 1, 1]])
GROUPED = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 1).long()}


def distilbert(layers: int = 4) -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=32, dim=16, n_heads=2, n_layers=layers, hidden_dim=32, pad_token_id=1
    )
    return DistilBertForSequenceClassification(config).eval()


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=32,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
    )
    return BartForConditionalGeneration(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return noisy(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128)))


def gemma2() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    return noisy(Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=8, attn_logit_softcapping=2.0)))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return noisy(LlamaForCausalLM(LlamaConfig(**GROUPED)))


def mistral() -> MistralForCausalLM:
    """Every row sees its last six keys."""
    torch.manual_seed(0)
    return noisy(MistralForCausalLM(MistralConfig(sliding_window=6, **GROUPED)))


def noisy(model: PreTrainedModel) -> PreTrainedModel:
    """With weights large enough that attention is far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


def layers_of(model) -> list[AttentionLayer]:
    """The attention modules of a model, sparse or not."""
    host, root = host_of(model)
    return host.layers(root)


def settings_in(model) -> list[tuple[AttentionLayer, Settings]]:
    """The layers of a model, or of a part of one, that carry settings, with these."""
    return [(layer, settings_on(layer)) for layer in carrying(*host_of(model))]


def sparsity_of(model) -> dict[str, float]:
    return SparseModel.of(model).sparsity
