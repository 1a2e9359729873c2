"""Families whose configuration or reading differs from that of most models agree with their tokenizers too."""

import pytest
import torch
from transformers import BartConfig, CanineConfig, PerceiverConfig, T5GemmaConfig

from crisp_attention.errors import OptionError
from crisp_attention.runs.sources import load_source
from tests.runs import small
from tests.runs.small import BODY, WORDS
from tests.runs.test_agreement import BART, texts

SOME = texts("the film is good", "bad plot and dull film")
PERCEIVER = PerceiverConfig(
    num_latents=4, d_latents=16, d_model=16, qk_channels=16, v_channels=16, num_blocks=1,
    num_self_attends_per_block=1, num_self_attention_heads=2, num_cross_attention_heads=2,
    vocab_size=len(WORDS), max_position_embeddings=32,
)  # fmt: skip


def t5gemma(pad: int) -> T5GemmaConfig:
    marks = {"pad_token_id": pad, "eos_token_id": 3, "bos_token_id": 2}
    half = BODY | marks | {"num_key_value_heads": 1, "head_dim": 8}
    return T5GemmaConfig(encoder=half, decoder=dict(half), vocab_size=len(WORDS), **marks)


def differences(source, task) -> float:
    """The largest between logits of texts alone and together."""
    rows = list(source.encode(task.splits["train"]))
    source.model.eval()
    with torch.no_grad():
        alone = torch.cat([source.model(**source.collate([row])).logits for row in rows])
        together = source.model(**source.collate(rows)).logits
    return (alone - together).abs().max().item()


def test_a_configuration_that_has_no_number_for_padding(tmp_path):
    source = load_source(small.saved(tmp_path, PERCEIVER), SOME, None)
    assert differences(source, SOME) < 1e-5


def test_the_number_for_padding_is_the_tokenizers_in_every_configuration_that_holds_it(tmp_path):
    """T5Gemma's classifier reads it in the outer configuration, others in that of the text model."""
    config = load_source(small.saved(tmp_path, t5gemma(pad=7)), SOME, None).model.config
    assert config.pad_token_id == config.get_text_config().pad_token_id == 0


def test_texts_need_end_tokens_where_the_model_counts_them(tmp_path):
    source = load_source(small.saved(tmp_path / "t5gemma", t5gemma(pad=0), special=False), SOME, None)
    assert differences(source, SOME) < 1e-5
    bart = small.saved(tmp_path / "bart", BartConfig(**BART), special=False)
    with pytest.raises(OptionError, match="at least one <eos> token"):
        load_source(bart, SOME, None)


def test_a_model_that_cannot_read_the_shortest_texts_reads_longer_ones(tmp_path):
    """CANINE reads every four tokens as one."""
    body = BODY | {"vocab_size": 100, "max_position_embeddings": 64}
    config = CanineConfig(**body, num_hash_functions=2, num_hash_buckets=20, local_transformer_stride=8)
    folder = small.saved(tmp_path, config)
    assert differences(load_source(folder, SOME, None), SOME) < 1e-5
    with pytest.raises(OptionError, match="CanineForSequenceClassification cannot read"):
        load_source(folder, texts("the film is good", "bad"), None)
