"""Reading a checkpoint as a classifier, with its tokenizer or its image processor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from crisp_attention.errors import CheckpointError, first_line, listed
from crisp_attention.models.notice import restoring
from crisp_attention.models.parameters import MODULE
from crisp_attention.models.transformers.checkpoints import UNUSABLE, read_config, read_model
from crisp_attention.models.transformers.config_notice import CONFIG_KEY
from crisp_attention.models.transformers.configs import recorded
from crisp_attention.runs.task import Task

AUTO: dict[str, Any] = {"text": AutoModelForSequenceClassification, "images": AutoModelForImageClassification}
KNOWN: dict[str, Any] = {
    "text": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "images": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
}
# What a run needs of fields that change the loss, what forward returns, or which texts it takes.
RETURNED = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
NEEDED = {
    "is_decoder": False,  # an encoder told to be one hides from its first token, which is pooled, all others
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,  # it takes only texts whose length is a multiple of it
}
HALVES = (torch.float16, torch.bfloat16)
NUMBERED = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Classifier:
    """A model with a head for the task; `drawn` and `settled` as in `Source`."""

    model: PreTrainedModel
    drawn: tuple[str, ...]
    settled: tuple[str, ...]


def read_classifier(path: str | Path, task: Task, *, keep_record: bool = False) -> Classifier:
    """The checkpoint at `path` as a classifier of the task's texts or images, dense, in float32.

    `keep_record` leaves the record of the checkpoint's sparsity in the configuration, for `crisp.restore`.
    Raises CheckpointError if it cannot be read, is of another kind, or its weights and configuration disagree.
    """
    kind, other = ("text", "images") if task.image_column is None else ("images", "text")
    with restoring():
        config = read_config(path)
        if type(config) not in KNOWN[kind]:
            reads = f", which classifies {other}" if type(config) in KNOWN[other] else ""
            raise CheckpointError(
                f"{path} is a model of type {config.model_type}{reads}; the data set holds {kind}, and transformers "
                f"has no classifier of {kind} of that type"
            )
        before, stored = [*(config.id2label or {}).values()], config.dtype
        settled = _settle(config, task.target.configuration()["problem_type"])
        if stored in HALVES:
            name = str(stored).removeprefix("torch.")
            settled.append(
                f"weights: {name} in the checkpoint, float32 in this run, because small steps need it"
            )
        if not keep_record:
            settled.extend(_settle_sparsity(config, path))
        for name, value in task.target.configuration().items():
            setattr(config, name, value)
        wide = (
            torch.promote_types(stored, torch.float32) if isinstance(stored, torch.dtype) else torch.float32
        )
        try:
            loaded: Any = read_model(
                AUTO[kind],
                path,
                config=config,
                dtype=wide,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except ImportError as error:
            raise CheckpointError(f"cannot load a model from {path}: {first_line(error)}") from error
    model, info = loaded
    drawn = _drawn(path, model, info)
    # what a method learned goes with its record
    unexpected = [key for key in info["unexpected_keys"] if f".{MODULE}." not in key]
    if unused := [key for key in unexpected if NUMBERED.search(key)]:
        settled.append(f"weights of the checkpoint that the model does not have: {listed(sorted(unused))}")
    if (head := _head(model, drawn)) and task.label_names:
        settled.extend(_settle_classes(head, before, task.label_names))
    return Classifier(model, drawn, tuple(settled))


def _settle(config: PreTrainedConfig, problem: str) -> list[str]:
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    changed: dict[str, str] = {}
    for part in parts:
        for name, value in {
            **RETURNED,
            **({"problem_type": problem, **NEEDED} if part is config else {}),
        }.items():
            found = getattr(part, name, None)
            if found not in (None, value):
                setattr(part, name, value)
                changed[name] = f"{name} is {value} (was {found})"
    return [f"the checkpoint's configuration, changed for this run: {', '.join(changed.values())}"] * bool(
        changed
    )


def _settle_sparsity(config: PreTrainedConfig, path: str | Path) -> list[str]:
    """Drop the checkpoint's sparsity: a run's own options say how sparse it is."""
    try:
        found = recorded(config)
    except ValueError as error:
        raise CheckpointError(f"cannot read a model configuration from {path}: {error}") from error
    if found is None:
        return []
    delattr(config, CONFIG_KEY)
    specs = dict.fromkeys(method.spec for method in found[0].values())
    return [
        f"attention: the checkpoint was saved with {', '.join(specs)}; this run's own options are used instead"
    ]


def _drawn(path: str | Path, model: PreTrainedModel, info: dict[str, Any]) -> tuple[str, ...]:
    """The randomly initialised weights. Raises CheckpointError if a mismatch is not that of the classes."""
    for key, stored, expected in info["mismatched_keys"]:
        if expected[0] != model.config.num_labels or tuple(stored[1:]) != tuple(expected[1:]):
            raise CheckpointError(
                f"config.json and the weights of {path} disagree: {key} should have the shape "
                f"{tuple(expected)} by the configuration, but has {tuple(stored)}"
            )
    drawn = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if drawn.issuperset(name for name, _ in model.named_parameters()):
        raise CheckpointError(
            f"{path} holds none of the weights of a {type(model).__name__}, which its config.json describes"
        )
    return tuple(sorted(drawn))


def _head(model: PreTrainedModel, drawn: Sequence[str]) -> list[nn.Linear]:
    """The layers of the checkpoint that give a number for every class."""
    inside = f"{model.base_model_prefix}."
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and not name.startswith(inside)
        and f"{name}.weight" not in drawn
    ]


def _settle_classes(head: Sequence[nn.Linear], before: Sequence[str], names: Sequence[str]) -> list[str]:
    if list(before) == list(names) or all(re.fullmatch(r"LABEL_\d+", name) for name in before):
        return []
    if sorted(before) != sorted(names):
        return [
            f"classes: the checkpoint's head, made for {listed(before)}, is retrained for {listed(names)}"
        ]
    order = [before.index(name) for name in names]
    with torch.no_grad():
        for layer in head:
            layer.weight.copy_(layer.weight[order])
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order])
    return [f"classes: the checkpoint has them as {listed(before)}; its head was reordered as in the data"]


def read_tokenizer(path: str | Path) -> Any:
    """The tokenizer at `path`. Raises CheckpointError if there is none, or one without a vocabulary."""
    try:
        with restoring():  # it reads the configuration too
            tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the library tokenizers raises Exception itself
        raise CheckpointError(f"cannot load a tokenizer from {path}: {first_line(error)}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made from nothing: each word would be unknown
        raise CheckpointError(
            f"cannot load a tokenizer from {path}: found no vocabulary such as tokenizer.json"
        )
    return tokenizer


def read_processor(path: str | Path) -> Any:
    """The image processor at `path`. Raises CheckpointError if there is none that can be used."""
    try:
        with restoring():  # it reads the configuration too
            return AutoImageProcessor.from_pretrained(path)
    except (ImportError, OSError, *UNUSABLE) as error:
        raise CheckpointError(f"cannot load an image processor from {path}: {first_line(error)}") from error
