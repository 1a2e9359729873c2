"""Models, tokenizers and data sets small enough to fine-tune in a second."""

import json
import random
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ConvBertConfig,
    FNetConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from crisp_attention.cli.options import FinetuneOptions
from crisp_attention.runs.finetune import Run, carry_out
from crisp_attention.runs.flat import spec_of
from crisp_attention.runs.spec import RunSpec
from tests.models.tiny import noisy

GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "dull")
FILLER = ("the", "film", "is", "a", "plot", "very", "and", "it", "was")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<end>", *GOOD, *BAD, *FILLER)


BODY = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def saved(
    folder: Path,
    model: PreTrainedConfig,
    *,
    words=WORDS,
    added=(),
    special=True,
    config=None,
    dtype=torch.float32,
    **tokenizer,
) -> str:
    """A random classifier of the configuration and a tokenizer, saved in `folder`.

    The tokenizer numbers `words`, marks a text's beginning and end unless `special` is False, and numbers segments;
    `tokenizer` are more of its settings, `config` fields that config.json gets afterwards.
    """
    set_seed(0)
    noisy(AutoModelForSequenceClassification.from_config(model)).to(dtype).save_pretrained(folder)
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    marks = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if special else {}
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "<end>", **marks}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=_marking(words) if special else _tokenizer(words),
        **{**names, "model_input_names": inputs, **tokenizer},
    )
    made.add_tokens(list(added))
    made.save_pretrained(folder)
    return str(folder)


def convbert() -> ConvBertConfig:
    body = BODY | {
        "num_hidden_layers": 2
    }  # what the first one convolves reaches the first token in the second
    return ConvBertConfig(**body, embedding_size=16, head_ratio=1, conv_kernel_size=3)


def fnet() -> FNetConfig:
    return FNetConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        intermediate_size=16,
        max_position_embeddings=32,
    )


def vit(folder: Path, channels: int = 3, pixels: int = 8, **processor) -> str:
    """A random ViT of one layer with its processor, saved in `folder`."""
    set_seed(0)
    body = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(**body, image_size=pixels, patch_size=4, num_channels=channels)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(**{"size": {"height": pixels, "width": pixels}, **processor}).save_pretrained(folder)
    return str(folder)


def bert(folder: Path, **changes) -> str:
    """A random BERT of three layers with its tokenizer, saved in `folder`; `changes` to its configuration."""
    set_seed(0)
    PreTrainedTokenizerFast(
        tokenizer_object=_marking(WORDS),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **changes,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def gpt2_without_padding(folder: Path) -> str:
    """A random GPT-2 of two layers; its tokenizer has no padding token."""
    set_seed(0)
    PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), unk_token="[UNK]", eos_token="<end>"
    ).save_pretrained(folder)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=32)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def reviews(folder: Path, train: int = 48, other: int = 16) -> str:
    """Sentences of 3 to 12 words whose class is that of the one word that judges."""
    drawn = random.Random(0)
    folder.mkdir(exist_ok=True)
    for split, count in (("train", train), ("validation", other), ("test", other)):
        rows = []
        for row in range(count):
            words = drawn.choices(FILLER, k=drawn.randint(2, 11))
            words.insert(drawn.randrange(len(words)), drawn.choice((BAD, GOOD)[row % 2]))
            rows.append({"text": " ".join(words), "label": row % 2})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def options(model: str, dataset: str, output: Path, **changes) -> FinetuneOptions:
    """A run of three epochs of six steps on `bert` and `reviews`."""
    defaults = {"sparsity": 0.5, "batch_size": 8, "learning_rate": 1e-2, "training": ("use_cpu=true",)}
    if changes.get("method") == "dense":
        del defaults["sparsity"]
    return FinetuneOptions(model=model, dataset=dataset, output=output, **{**defaults, **changes})


def spec(options: FinetuneOptions) -> RunSpec:
    return spec_of(vars(options))


def tuned(options: FinetuneOptions, console: Console | None = None, callbacks=()) -> Run:
    """The run that `crisp finetune` does with these options."""
    return carry_out(
        spec(options),
        options.output,
        console,
        callbacks,
        resume=options.resume,
        overwrite=options.overwrite,
        keep_model=not options.discard_model,
    )


def _tokenizer(words=WORDS) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _marking(words) -> Tokenizer:
    tokenizer = _tokenizer(words)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer
