"""A small model and a text with traps in it, for the tests of `crisp view`."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HOSTILE = (
    "<script>window.hit=1</script>",
    "</script>",
    "<!--",
    "<img/src=x/onerror=hit=1>",
    "\"quotes'",
    "&lt;b&gt;",
    "$data",
    "\u2028",
    "🙂",
    "שלום",
)
WORDS = ("[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "slept", *HOSTILE)
FOUR = ("topk:sparsity=0.5", "topk:sparsity=0.8", "random:sparsity=0.8", "window:width=5")
TEXT = "the cat sat on a mat and slept the cat"


def save_bert(folder):
    """A random BERT of three layers with two heads whose tokenizer splits at spaces, saved in `folder`."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        initializer_range=0.6,  # so that the weights are not all alike
    )
    BertModel(config).save_pretrained(folder)
    return folder
