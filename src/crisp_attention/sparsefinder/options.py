"""What `crisp sparsefinder` can be asked for. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from crisp_attention.flags import Count, Flag, Text, Texts


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The trained model, and the data that it sees."""

    model: str
    """The folder of a run of `crisp finetune` or of a model, or a hub id, with entmax in some layers."""

    dataset: str
    """A hub id (`id:configuration` where it has several), a parquet, csv, tsv, json or jsonl file, or a folder of such
    files named train, validation and test or of images by class."""

    examples: int = 500
    """How many examples to fit to, drawn at random, the same ones every time; all if there are fewer. A layer sees
    the first 50,000 tokens of them."""

    batch_size: int = 16
    """Examples per batch."""

    revision: Text = None
    """For a data set of the Hub: the branch, tag or commit to read. Default: the latest."""

    text_columns: Texts = ()
    """One or two text columns. Default: detected automatically."""

    image_column: Text = None
    """The image column. Default: detected automatically."""

    label_column: Text = None
    """The label column. Default: detected automatically."""

    max_length: Count = None
    """For text: longer ones are cut to this many tokens, or to fewer where the model or its tokenizer takes fewer.
    Default: 128."""


@dataclass(frozen=True, kw_only=True)
class FitOptions(SourceOptions):
    """Fit Sparsefinder to a model, so that it predicts which pairs entmax will connect, and save the model with it.

    The weights of the model do not change. Prints how well the pairs of each layer are predicted, on the one example
    in ten that is held out.

    For example:
      crisp finetune --model builtin:minilm --dataset stanfordnlp/sst2 --method entmax --output runs/entmax
      crisp sparsefinder fit --model runs/entmax --dataset stanfordnlp/sst2 --output runs/finder
    """

    output: Path
    """A new folder for the model, which crisp.load and --model read, and sparsefinder.csv, the scores of every head."""

    method: Annotated[str, arg(metavar="SPEC")] = "sparsefinder"
    """The layout, such as sparsefinder:variant=distance:threshold=2; `crisp methods` lists its options. It is given to
    the layers with entmax and predicts their pairs. With entmax behind it, as in sparsefinder+entmax:alpha=1.5, every
    layer gets both."""

    gold: Annotated[str | None, arg(metavar="RULE", help_behavior_hint="")] = None
    """Predict the pairs of another rule, such as topk:sparsity=0.8, in every layer; the model then attends to all of
    what is predicted, by softmax unless --method has a rule. Default: the pairs of the method's own rule."""

    split: Literal["train", "validation"] = "train"
    """The split that the examples are drawn from."""

    seed: int = 0
    """Seed of the random draws of the fit."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(SourceOptions):
    """Compare how well entmax's pairs are predicted: every variant of Sparsefinder, fixed patterns, hashing, clusters.

    Projections are fitted to training examples; what they predict is compared with what entmax keeps on validation
    examples, for every layer, head, setting and seed. Then the model is evaluated with each of the main settings in
    its layers. Writes table.csv, quality.csv, figures and the page study.html; nothing is written before all is done.

    For example:
      crisp sparsefinder study --model runs/entmax --dataset stanfordnlp/sst2 --output runs/sparsefinder-study
    """

    output: Path
    """Folder for the study; one that holds such a study already is replaced."""

    seeds: int = 3
    """Number of seeds: what is fitted or drawn at random is repeated for each."""

    rank: int = 4
    """The dimensions of the projections; buckets are also tried with a quarter as many."""

    scored_examples: int = 100
    """How many validation examples the predicted pairs are scored on."""

    quality_examples: int = 500
    """How many validation examples the model is evaluated on with each main setting: the sweeps of every variant with
    a window of 3, and all other layouts. 0 for no evaluation."""

    quick: Flag = False
    """Three settings of each variant, one seed, and at most 64 examples of each kind, to see what comes out."""
