"""What the commands can be asked for. Imports nothing heavy: the command line's help reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from crisp_attention.runs.options import Count, Real, Text, Texts


@dataclass(frozen=True)
class ProfileOptions:
    """Find out where sparsity is safe: what every layer and head keeps of its dense attention.

    One pass of the dense model over examples of the data. Prints what each layer keeps, and budgets
    for every head; for example:
      crisp profile --model distilbert-base-uncased --dataset stanfordnlp/sst2 --save budgets.json
    """

    model: str
    """A hub id, a folder of a model or a run, `builtin:minilm` (pretrained text encoder) or `builtin:vit` (small,
    random)."""

    dataset: str
    """A hub id (`id:configuration` where it has several), a parquet, csv, tsv, json or jsonl file, a folder of such
    files named train, validation and test or of images by class, or `builtin:digits`."""

    output: Path = Path("runs/profile")
    """Folder for heads.csv, curves.csv and profile.png; what an earlier profile left there is replaced."""

    save: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the recommended budgets to this file, for `crisp finetune --budgets` and `crisp.budgets`."""

    sparsity: Real = None
    """Recommend the budgets that keep most mass with as many pairs as this sparsity everywhere. Default: 0.8."""

    mass: Real = None
    """Instead: the cheapest budgets under which every head keeps this share of its mass, in (0, 1]."""

    method: Literal["topk", "block_topk"] = "topk"
    """The method that the budgets are for."""

    block_size: int = 16
    """Keys in a block, for block_topk."""

    split: Literal["train", "validation"] = "train"
    """The split that the examples are drawn from."""

    examples: int = 512
    """How many examples, drawn at random, the same ones every time; all if there are fewer."""

    batch_size: int = 32
    """Examples per batch."""

    revision: Text = None
    """For a data set of the Hub: the branch, tag or commit to read. Default: its newest."""

    text_columns: Texts = ()
    """One or two text columns. Default: detected automatically."""

    image_column: Text = None
    """The image column. Default: detected automatically."""

    label_column: Text = None
    """The label column. Default: detected automatically."""

    max_length: Count = None
    """For text: longer ones are cut to this many tokens, or to fewer where the model or its tokenizer takes fewer.
    Default: 128."""


@dataclass(frozen=True)
class MethodsOptions:
    """List the methods that `--method` takes, with their options."""
