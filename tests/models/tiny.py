"""Small models for the tests of the integration."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 1, 1, 1]])
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


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits
