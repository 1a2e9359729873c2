"""Image classifiers and the batches they read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torch import Tensor, nn
from transformers import PreTrainedModel

from crisp_attention.errors import OptionError, first_line
from crisp_attention.models.transformers.checkpoints import UNUSABLE
from crisp_attention.runs.data.images import as_rgb, survey
from crisp_attention.runs.sources.pretrained import read_classifier, read_processor
from crisp_attention.runs.sources.source import Batch, Source, tried
from crisp_attention.runs.task import Task

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels


def image_model(path: str | Path, task: Task, *, keep_record: bool = False) -> Source:
    """The classifier and image processor at `path`, brought to agree with each other and with the task's images.

    `keep_record` as in `load_source`. Raises CheckpointError for what cannot be read, OptionError for what cannot
    agree, DataError for an image that cannot be read.
    """
    column = str(task.image_column)
    classifier = read_classifier(path, task, keep_record=keep_record)
    model, processor = classifier.model, read_processor(path)
    seen = survey(task.splits, column)
    channels = _channels(model)
    if channels not in MODES:
        raise OptionError(f"{type(model).__name__} reads images of {channels} channels; expected 1, 3 or 4")
    notes = [*classifier.settled, *_fit_processor(processor, channels)]

    def pixels(images: Sequence[Image]) -> Tensor:
        given = [_with_channels(image, channels, seen.white) for image in images]
        try:
            values = processor(given, return_tensors="pt")["pixel_values"]
        except UNUSABLE as error:
            raise OptionError(
                f"the image processor of {path} cannot read images of {channels} channels: {first_line(error)}"
            ) from error
        return values

    first = task.splits["train"][0][column]
    _try(path, model, pixels([first]))
    if not _one_size(pixels):
        _check_sizes(path, task, column, first.size)

    def collate(examples: list[dict[str, Any]]) -> Batch:
        labels = torch.tensor([each["labels"] for each in examples])
        return {"pixel_values": pixels([each[column] for each in examples]), "labels": labels}

    return Source(model, lambda split: split, collate, processor, classifier.drawn, (*notes, *seen.notes))


def _with_channels(image: Image, channels: int, white: int) -> Image:
    if channels == 4 and image.has_transparency_data:
        return image.convert("RGBA")
    return as_rgb(image, white).convert(MODES[channels])


def _channels(model: PreTrainedModel) -> int:
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[0].in_channels if convolutions else getattr(model.config, "num_channels", 3)


def _fit_processor(processor: Any, channels: int) -> list[str]:
    """Fit the processor to the model's channels; returns notes for the user."""
    notes = []
    if channels != 3 and getattr(processor, "do_convert_rgb", None):
        processor.do_convert_rgb = False
        notes.append(f"images: not converted to RGB by the processor, as the model reads {channels} channels")
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if isinstance(values, list | tuple) and len(values) != channels and len(set(values)) == 1:
            setattr(processor, name, [values[0]] * channels)
            notes.append(
                f"images: the processor's {name} of {len(values)} channels is used for the model's {channels}"
            )
    if getattr(processor, "do_rescale", True) is False:
        notes.append("images: pixel values are 0 to 255 before normalisation (do_rescale is off)")
    elif (factor := getattr(processor, "rescale_factor", None)) and not 0.5 < 255 * factor < 2:
        notes.append(
            f"images: pixel values are 0 to {255 * factor:.3g} before normalisation (rescale_factor is "
            f"{factor:.3g})"
        )
    return notes


def _try(path: str | Path, model: PreTrainedModel, pixels: Tensor) -> None:
    size = "{} x {} with {} channels".format(*pixels.shape[2:], pixels.shape[1])
    if not pixels.isfinite().all():
        raise OptionError(
            f"the image processor of {path} produces values that are not finite; expected an image_std without zeros"
        )
    with tried(model, f"images as the processor of {path} makes them, {size}"):
        model(pixel_values=pixels)


def _one_size(pixels: Any) -> bool:
    """Whether the processor brings all images to one size."""
    wide, tall = (fromarray(np.zeros((*shape, 3), dtype=np.uint8)) for shape in ((40, 90), (90, 40)))
    return pixels([wide]).shape == pixels([tall]).shape


def _check_sizes(path: str | Path, task: Task, column: str, expected: tuple[int, int]) -> None:
    for name, split in task.splits.items():
        for row, each in enumerate(split.select_columns([column])):
            if (image := each[column]).size != expected:
                raise OptionError(
                    f"the processor of {path} does not bring images to one size, so all must have the same: "
                    f"expected {expected[0]} x {expected[1]}, as in row 0 of train, "
                    f"found {image.width} x {image.height} in row {row} of {name}; "
                    f"set size in its preprocessor_config.json"
                )
