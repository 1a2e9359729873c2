"""What the pruning studies in docs/results.md begin with: questions of many classes, and a small ResNet.

python -m benchmarks.pruning_inputs --trec ../shared/data/trec --output runs/pruning
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from sklearn.model_selection import train_test_split
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor, set_seed

LEAST = 40  # questions of a class
HELD_OUT = 0.2


@dataclass(frozen=True)
class Options:
    """Write `questions/` and `resnet/`."""

    trec: Path
    """The folder of TREC's questions: train.parquet with `sentence` and `fine_label`."""
    output: Path = Path("runs/pruning")
    """Where both go."""


def questions(trec: Path, output: Path) -> None:
    """The fine classes with at least 40 questions; a fifth of each to test."""
    rows = pd.read_parquet(trec / "train.parquet")[["sentence", "fine_label"]]
    kept = rows[rows.groupby("fine_label")["sentence"].transform("size") >= LEAST]
    train, test = train_test_split(kept, test_size=HELD_OUT, random_state=0, stratify=kept["fine_label"])
    output.mkdir(parents=True, exist_ok=True)
    for name, split in (("train", train), ("test", test)):
        split.sort_index().reset_index(drop=True).to_parquet(output / f"{name}.parquet")
    print(
        f"{kept['fine_label'].nunique()} classes, {len(train):,} questions to train on, {len(test):,} to test"
    )


def resnet(output: Path) -> None:
    """A ResNet for grayscale images, with random weights."""
    set_seed(0)
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **sizes))
    model.save_pretrained(output)
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False
    )
    processor.save_pretrained(output)
    print(f"ResNet, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    options = tyro.cli(Options)
    questions(options.trec, options.output / "questions")
    resnet(options.output / "resnet")
