"""The inputs of a page: the methods, a text model, and a text as the model reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from crisp_attention.errors import CheckpointError, OptionError, first_line, listed
from crisp_attention.methods.layouts import BlockTopK, Window
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.methods.rules import Entmax, NofM, RandomK, Threshold, TopK, TopP
from crisp_attention.methods.spec import parse
from crisp_attention.models.notice import restoring
from crisp_attention.models.persistence import restore
from crisp_attention.models.transformers.checkpoints import model_folder, read_config, read_model
from crisp_attention.models.transformers.configs import recorded
from crisp_attention.runs.sources import agree, minilm_folder, read_tokenizer
from crisp_attention.view.options import ViewOptions

DEFAULTS: tuple[AnyMethod, ...] = (
    TopK(0.5),
    TopK(0.8),
    TopP(0.9),
    Threshold(0.1),
    NofM(1, 4),
    Entmax(1.5),
    BlockTopK(0.5, block_size=4),
    Window(5),
    RandomK(0.8),
)
MAX_TOKENS = 128


def chosen(specs: tuple[str, ...]) -> list[Method]:
    """The methods that the specs name, by default `DEFAULTS`. Raises OptionError for a spec that is none."""
    if not specs:
        return [as_method(each) for each in DEFAULTS]
    methods = []
    for spec in specs:
        try:
            methods.append(parse(spec))
        except (TypeError, ValueError) as error:
            raise OptionError(f"method {spec}: {error}", "method") from error
    return list(dict.fromkeys(methods))


@dataclass(frozen=True)
class Reading:
    """A model, sparse if it was saved sparse, and one text as its batch."""

    model: PreTrainedModel
    texts: tuple[str, ...]
    tokens: list[str]
    batch: dict[str, Tensor]
    notes: tuple[str, ...]


def read(options: ViewOptions) -> Reading:
    """Load the model and tokenize the text.

    Raises CheckpointError if the model cannot be read, OptionError if it reads no text or the text is empty.
    """
    texts = tuple(text for text in (options.text, options.text_pair) if text is not None)
    for option, text in zip(("text", "text_pair"), texts, strict=False):
        if not text.strip():
            raise OptionError(f"{option} is empty", option)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise OptionError(f"{option} is not valid UTF-8", option)
    if not options.model.isprintable():
        raise OptionError("model is not valid UTF-8, or contains unprintable characters", "model")
    path = _folder(options.model)
    with restoring():
        config = read_config(path)
    if config.is_encoder_decoder:
        raise OptionError(
            f"crisp view shows encoders and decoders; {options.model} is an encoder-decoder ({config.model_type})"
        )
    tokenizer = read_tokenizer(path)
    model, notes = _load(path, config)
    return _tokenized(model, tokenizer, texts, notes)


def _folder(name: str) -> str | Path:
    if name.startswith("builtin:"):
        if name != "builtin:minilm":
            raise OptionError(f"unknown model {name!r}; the built-in text model is builtin:minilm")
        return minilm_folder()
    return model_folder(name)


def _load(path: str | Path, config: Any) -> tuple[PreTrainedModel, tuple[str, ...]]:
    try:
        with restoring():
            loaded: Any = read_model(_class(config), path, use_safetensors=True, output_loading_info=True)
        model, info = loaded
        if recorded(model.config) is not None:
            restore(model)
    except (ImportError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot load a model from {path}: {first_line(error)}") from error
    new = sorted(info["missing_keys"])
    return model, (f"Weights not in the checkpoint, randomly initialised: {listed(new)}.",) if new else ()


def _class(config: Any) -> Any:
    names = config.architectures or [""]
    saved_as = getattr(transformers, names[0], None)
    known = isinstance(saved_as, type) and issubclass(saved_as, PreTrainedModel)
    return saved_as if known and len(names) == 1 else AutoModel


def _tokenized(
    model: PreTrainedModel, tokenizer: Any, texts: tuple[str, ...], notes: tuple[str, ...]
) -> Reading:
    whole = len(tokenizer(*texts)["input_ids"])
    if not whole:
        raise OptionError("the tokenizer produces no token from this text")
    body: Any = model.base_model  # what is looked into, without a head
    agreed = agree(body, tokenizer, texts)
    limit = agreed.cut(MAX_TOKENS)
    encoded = tokenizer(*texts, truncation=True, max_length=limit, return_tensors="pt")
    ids = encoded["input_ids"][0].tolist()
    notes = (*notes, *agreed.notes)
    if whole > len(ids):
        notes = (*notes, f"The text has {whole:,} tokens; the first {len(ids)} are shown.")
        texts = (tokenizer.decode(ids, skip_special_tokens=True) + " …",)
    batch = {name: tensor for name, tensor in encoded.items() if name in agreed.taken}
    return Reading(model, texts, [_shown(tokenizer, each) for each in ids], batch, notes)


def _shown(tokenizer: Any, token: int) -> str:
    """What a token stands for; its raw form where that is a part of a character, or white space."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False).strip()
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))
