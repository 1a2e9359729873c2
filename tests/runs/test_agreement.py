"""Where model, tokenizer and data disagree, one wins and says so, or the pair is refused by name."""

import json
import re

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    RobertaConfig,
    T5Config,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    XLNetConfig,
)

from crisp_attention import CheckpointError, load
from crisp_attention.errors import OptionError
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.task import Classification, Task
from tests.runs import small
from tests.runs.small import BODY, WORDS

BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": 2,
    "decoder_start_token_id": 3,
    "vocab_size": len(WORDS),
}
GPT2 = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
LLAMA = BODY | {"pad_token_id": 0, "max_position_embeddings": 40}


def texts(*rows, columns=("text",), names=("bad", "good")) -> Task:
    made = {name: [row if isinstance(row, str) else row[i] for row in rows] for i, name in enumerate(columns)}
    labels = [row % len(names) for row in range(len(rows))]
    split = Dataset.from_dict({**made, "labels": labels, "index": range(len(rows))})
    return Task({"train": split}, columns, None, Classification(names), ())


SOME = texts("the film is good", "bad")
PAIRS = texts(("the film", "is good"), ("bad", "plot"), columns=("a", "b"))
LONG = texts("film " * 200, "bad plot")


def said(source, words):
    return any(words in note for note in source.notes)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (BertConfig(**BODY), 32),
        (RobertaConfig(**BODY, pad_token_id=1), 30),
        (RobertaConfig(**BODY, pad_token_id=0), 31),
        (CamembertConfig(**BODY, pad_token_id=5), 26),
        (GPT2Config(**GPT2), 32),
        (BartConfig(**BART), 32),
        (LlamaConfig(**LLAMA), 40),
        (OPTConfig(vocab_size=len(WORDS), hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=1,
                   num_attention_heads=2, max_position_embeddings=32, pad_token_id=0), 32),
        (XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=16), 202),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)  # fmt: skip
def test_a_long_text_is_cut_to_the_positions_that_the_model_has(tmp_path, config, tokens):
    folder = small.saved(tmp_path, config)
    source = load_source(folder, LONG, 512)
    encoded = source.encode(LONG.splits["train"])
    assert len(encoded[0]["input_ids"]) == tokens
    assert said(source, f"longest text: {tokens} tokens instead of 512, as the model takes no more") == (
        tokens < 202
    )
    with torch.no_grad():
        assert source.model.eval()(**source.collate(list(encoded))).logits.isfinite().all()


@pytest.mark.parametrize(("limit", "tokens"), [(16, 16), (10**30, 32)])
def test_the_length_that_the_tokenizer_takes(tmp_path, limit, tokens):
    folder = small.saved(tmp_path, BertConfig(**BODY), model_max_length=limit)
    assert said(load_source(folder, LONG, 10**40), f"longest text: {tokens} tokens instead of")
    folder = small.saved(tmp_path, BertConfig(**BODY), model_max_length=2)
    with pytest.raises(OptionError, match="the tokenizer takes 2 tokens at most; the shortest text has 3"):
        load_source(folder, LONG, None)


def test_a_token_that_the_model_lacks_is_refused_by_name(tmp_path):
    folder = small.saved(tmp_path, BertConfig(**BODY), words=(*WORDS, "new", "newer"))
    assert load_source(folder, SOME, 16)  # no text has one
    for rows in (("newer film", "bad"), ("bad", "a newer film")):
        with pytest.raises(
            OptionError, match=f"vocabulary does not match the model's: token 'newer' has id {len(WORDS) + 1}"
        ):
            load_source(folder, texts(*rows), 16)
    late = texts(*["the film"] * 70, "newer film")
    with pytest.raises(OptionError, match="vocabulary does not match the model's"):
        load_source(folder, late, 16).encode(late.splits["train"])


def test_tokens_added_to_the_tokenizer_get_embeddings(tmp_path):
    folder = small.saved(tmp_path, BertConfig(**BODY), added=("<user>", "<url>"))
    task = texts("<url> is good", "bad")
    source = load_source(folder, task, 16)
    assert said(
        source, "embeddings of tokens that only the tokenizer has, randomly initialised: <user>, <url>"
    )
    encoded = source.encode(task.splits["train"])
    assert encoded[0]["input_ids"][1] == len(WORDS) + 1 == source.model.config.vocab_size - 1
    assert source.model(**source.collate(list(encoded))).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("config", "taken", "note"),
    [
        (BertConfig(**BODY), True, None),
        (XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=16), True, None),
        (BertConfig(**BODY, type_vocab_size=1), False, "produces 2 and BertForSequenceClassification has 1"),
        (GPT2Config(**GPT2, pad_token_id=0), False, "GPT2ForSequenceClassification has none"),  # it would add words
        (LlamaConfig(**LLAMA), False, "LlamaForSequenceClassification has none"),
        (DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=16), False, "has none"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)  # fmt: skip
def test_segments_go_to_models_that_have_them(tmp_path, config, taken, note):
    source = load_source(small.saved(tmp_path, config), PAIRS, 16)
    batch = source.collate(list(source.encode(PAIRS.splits["train"])))
    assert ("token_type_ids" in batch) == taken
    assert said(source, "segments: left out") == (note is not None)
    assert note is None or said(source, note)
    assert set(batch) == {"input_ids", "attention_mask", "labels"} | ({"token_type_ids"} if taken else set())


@pytest.mark.parametrize(
    ("pad", "of_model", "used", "note"),
    [
        ("[PAD]", 0, 0, None),
        ("[PAD]", 4, 0, "the tokenizer's [PAD] (0) is used; the model had 4"),
        ("[PAD]", None, 0, None),
        (None, 1, 1, "the tokenizer has no padding token; the model's, [UNK], is used"),
        (None, -1, 4, "its end token, <end>, is used"),
        (None, None, 4, "its end token, <end>, is used"),
    ],
)
def test_what_pads_is_what_the_classifier_skips(tmp_path, pad, of_model, used, note):
    """A decoder's classifier reads the last token that is not its configuration's padding token."""
    source = load_source(
        small.saved(tmp_path, LlamaConfig(**LLAMA | {"pad_token_id": of_model}), pad_token=pad), SOME, 16
    )
    batch = source.collate(list(source.encode(SOME.splits["train"])))
    assert source.model.config.pad_token_id == source.processor.pad_token_id == used
    assert (batch["input_ids"][batch["attention_mask"] == 0] == used).all()
    assert said(source, "padding:") == (note is not None)
    assert note is None or said(source, note)


def test_texts_that_end_in_the_token_that_pads(tmp_path):
    folder = small.saved(tmp_path, LlamaConfig(**LLAMA), pad_token="[SEP]")
    assert said(load_source(folder, SOME, 16), "ends every text with its padding token, [SEP]")


def test_positions_that_skip_padding_keep_the_number_of_the_model(tmp_path):
    """Loaded again, RoBERTa counts positions from its configuration's padding token: it has to stay."""
    source = load_source(small.saved(tmp_path, RobertaConfig(**BODY, pad_token_id=5)), SOME, 16)
    assert source.model.config.pad_token_id == 5
    assert source.processor.pad_token_id == 0
    assert said(source, "which counts positions by its own padding id, keeps 5")


@pytest.mark.parametrize(
    ("config", "given", "side", "width"),
    [
        (BertConfig(**BODY), "right", "right", None),
        (BertConfig(**BODY), "left", "right", None),  # its positions count padding on the left
        (RobertaConfig(**BODY, pad_token_id=0), "left", "right", None),  # reads the first token
        (GPT2Config(**GPT2), "left", "right", None),
        (LlamaConfig(**LLAMA), "left", "left", None),
        (
            XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=1, n_head=2, d_inner=16),
            "right",
            "left",
            None,
        ),
        (BartConfig(**BART), "left", "right", None),
        (small.convbert(), "right", "right", 20),  # it convolves over padding
        (small.fnet(), "left", "left", 20),  # it mixes all positions and has no mask
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_texts_are_padded_where_it_changes_no_result(tmp_path, config, given, side, width):
    source = load_source(small.saved(tmp_path, config, padding_side=given), SOME, 20)
    batch = source.collate(list(source.encode(SOME.splits["train"])))
    assert source.processor.padding_side == side
    assert batch["input_ids"].shape[1] == (width or 6)
    assert said(source, "padding: on the") == (given != side)
    assert said(source, "padding: all texts to 20 tokens") == (width is not None)


def test_a_mask_is_made_whatever_the_tokenizer_gives(tmp_path):
    source = load_source(small.saved(tmp_path, BertConfig(**BODY), model_input_names=["input_ids"]), SOME, 16)
    assert source.collate(list(source.encode(SOME.splits["train"])))["attention_mask"].sum(1).tolist() == [
        6,
        3,
    ]


@pytest.mark.parametrize("config", [BartConfig(**BART), T5Config(
    vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0, eos_token_id=3,
    decoder_start_token_id=0)], ids=["bart", "t5"])  # fmt: skip
def test_models_that_read_a_text_at_its_end_token(tmp_path, config):
    folder = small.saved(tmp_path, config)
    odd = texts("the film", "bad", "film [SEP] plot")
    with pytest.raises(OptionError, match=r"id 3: expected as many in every text, at least one; row 2 has 2"):
        load_source(folder, odd, 16)
    source = load_source(folder, SOME, 16)
    assert source.encode(SOME.splits["train"])
    with pytest.raises(OptionError, match="row 2 has 2"):
        source.encode(odd.splits["train"])


def test_a_text_of_padding_alone(tmp_path):
    folder = small.saved(tmp_path, LlamaConfig(**LLAMA), special=False)
    with pytest.raises(
        OptionError, match=r"the text of row 1 consists of nothing but the padding token, \[PAD\]"
    ):
        load_source(folder, texts("the film", "[PAD] [PAD]"), 16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_source(small.saved(tmp_path_factory.mktemp("plain"), BertConfig(**BODY)), SOME, 16)


def outputs(source):
    return source.model.eval()(**source.collate(list(source.encode(SOME.splits["train"]))))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("problem_type", "regression"),
        ("problem_type", "multi_label_classification"),
        ("output_attentions", True),
        ("output_hidden_states", True),
        ("return_dict", False),
        ("is_decoder", True),
        ("chunk_size_feed_forward", 4),
    ],
)
def test_fields_that_would_change_the_loss_or_what_comes_back(tmp_path, plain, field, value):
    """The run is that of a checkpoint without the field, to the bit."""
    source = load_source(small.saved(tmp_path, BertConfig(**BODY), config={field: value}), SOME, 16)
    found, expected = (outputs(each) for each in (source, plain))
    assert [said(each, f"changed for this run: {field} is") for each in (source, plain)] == [True, False]
    assert set(found) == set(expected) == {"loss", "logits"}
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_weights_are_trained_in_float32(tmp_path, dtype):
    source = load_source(small.saved(tmp_path, BertConfig(**BODY), dtype=dtype), SOME, 16)
    assert source.model.dtype == torch.promote_types(dtype, torch.float32)
    assert said(source, f"weights: {str(dtype)[6:]} in the checkpoint") == (dtype.itemsize == 2)


@pytest.mark.parametrize(
    ("before", "note"),
    [
        (("bad", "so-so", "good"), None),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("good", "bad", "so-so"), "its head was reordered as in the data"),
        (("joy", "fear", "rage"), "made for joy, fear, rage, is retrained for bad, so-so, good"),
    ],
)
def test_the_classes_of_a_checkpoint_keep_their_weights(tmp_path, before, note):
    config = BertConfig(**BODY, id2label=dict(enumerate(before)))
    weights = load_file(f"{small.saved(tmp_path, config)}/model.safetensors")["classifier.weight"]
    task = texts("the film", "bad", "good", names=("bad", "so-so", "good"))
    source = load_source(str(tmp_path), task, 16)
    order = [before.index(name) for name in task.label_names] if "good" in before else [0, 1, 2]
    assert torch.equal(source.model.classifier.weight, weights[order])
    assert said(source, "classes:") == (note is not None)
    assert note is None or said(source, note)


def test_weights_that_do_not_fit_their_configuration(tmp_path):
    folder = small.saved(tmp_path, BertConfig(**BODY), config={"intermediate_size": 24})
    with pytest.raises(CheckpointError, match=r"disagree: bert\.encoder\S+ should have the shape \(.*24"):
        load_source(folder, SOME, 16)
    folder = small.saved(tmp_path, BertConfig(**BODY), config={"num_hidden_layers": 0})
    assert said(load_source(folder, SOME, 16), "that the model does not have: bert.encoder.layer.0.")
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="holds none of the weights of a BertForSequenceClassification"):
        load_source(folder, SOME, 16)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", "wide", "hidden_size"),
        ("dtype", "float33", "float33"),
        ("num_attention_heads", 3, "multiple of the number of attention heads"),
        ("hidden_act", "magic", "KeyError: 'magic'"),
        ("num_attention_heads", 0, "zero"),
        ("model_type", "no-such-model", "no-such-model"),
        ("model_type", None, "model type `None`"),
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path, field, value, message):
    folder = small.saved(tmp_path, BertConfig(**BODY), config={field: value})
    for read in (lambda: load_source(folder, SOME, 16), lambda: load(folder)):
        with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_models_of_another_kind(tmp_path):
    vision, speech, maker = small.vit(tmp_path / "vit"), tmp_path / "speech", tmp_path / "maker"
    config = Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                            conv_dim=(8, 8), conv_kernel=(3, 3), conv_stride=(2, 2))  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).save_pretrained(speech)
    small.saved(maker, BertConfig(**BODY), config={"model_type": "marian"})
    for folder, message in (
        (vision, "is a model of type vit, which classifies images; the data set holds text"),
        (speech, "is a model of type wav2vec2; the data set holds text"),
        (maker, "is a model of type marian; the data set holds text"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_source(str(folder), SOME, 16)


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    folder = small.saved(tmp_path, BertConfig(**BODY))
    for text in ('{"version": "1.0"}', "[]", json.dumps({"model": {"type": "Nothing"}})):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CheckpointError, match="cannot load a tokenizer from"):
            load_source(folder, SOME, 16)
