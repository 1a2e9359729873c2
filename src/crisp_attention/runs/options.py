"""What `crisp finetune` can be asked for. Imports nothing heavy: the command line's help reads it."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

# Each help text says itself what happens without the option: no "(default: None)" after it.
Real = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")]
REPEATED = ("training", "recipe")  # options that are given again for each value
Flag = Annotated[bool, arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What a run learns, from which data and how: the part that the runs of a study share."""

    model: str
    """A hub id, a folder of a model or a run, `builtin:minilm` (pretrained text encoder) or `builtin:vit` (small,
    random)."""

    dataset: str
    """A hub id (`id:configuration` where it has several), a parquet, csv, tsv, json or jsonl file, a folder of such
    files named train, validation and test or of images by class, or `builtin:digits`."""

    revision: Text = None
    """For a data set of the Hub: the branch, tag or commit to read. Default: its newest."""

    layers: Texts = ()
    """Attention layers to make sparse: indices, ranges (2-5) or name patterns. Default: all."""

    attention: Literal["self", "cross", "all"] = "self"
    """Which attention to make sparse in encoder-decoder models."""

    phase: Literal["always", "train", "eval"] = "always"
    """When attention is sparse: in training, in evaluation, or in both."""

    schedule: Literal["constant", "linear", "cosine", "cubic"] = "constant"
    """How the sparsity rises from 0 during training; `constant` is the full sparsity from the start."""

    ramp: Annotated[tuple[float, float] | None, arg(metavar="BEGIN END", help_behavior_hint="")] = None
    """Fractions of training between which the sparsity rises. Default: 0 0.5."""

    text_columns: Texts = ()
    """One or two text columns. Default: detected automatically."""

    image_column: Text = None
    """The image column. Default: detected automatically."""

    label_column: Text = None
    """The label column. Default: detected automatically."""

    train_examples: Count = None
    """Train on this many examples, the same ones for every seed. Default: all."""

    epochs: float = 3.0
    """Passes over the training examples."""

    batch_size: int = 32
    """Examples per training step and device."""

    learning_rate: float = 2e-5
    """Peak learning rate (AdamW, linear decay)."""

    max_length: Count = None
    """For text: longer ones are cut to this many tokens, or to fewer where the model or its tokenizer takes fewer.
    Default: 128."""

    training: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")]] = ()
    """Any other field of transformers.TrainingArguments, for example weight_decay=0.01."""

    metric: Annotated[
        str | None, arg(metavar="{accuracy,f1,mcc,pearson,spearman,rmse}", help_behavior_hint="")
    ] = None
    """The main metric, by which the best checkpoint is chosen. Default: accuracy for classes, pearson for numbers."""

    report_to: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Log the run there too; TensorBoard's files go into the run's folder."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RecipeOptions):
    """Fine-tune a model with sparse attention, evaluate it, and keep everything in one folder.

    For example:
      crisp finetune --model distilbert-base-uncased --dataset stanfordnlp/sst2 --output runs/first
    """

    output: Path
    """Folder for the run: config.json, metrics.json, predictions, figures, model."""

    method: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint="")] = None
    """A method and its options, such as `topk`, `nofm:n=2:m=4` or `window:width=9+topk`; `crisp methods` lists them.
    Default: `topk`."""

    sparsity: Real = None
    """For methods with a sparsity: the share of keys, or blocks, to drop, in [0, 1). Default: 0.8."""

    budgets: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """A method for every layer and head, as `crisp profile --save` wrote them, in place of `--method`."""

    seed: int = 0
    """Seed of the classifier's initial weights, the order of examples, dropout and random keys."""

    discard_model: Flag = False
    """Keep no model, only what was measured: configuration, metrics, predictions, figures."""

    overwrite: Flag = False
    """Replace the run in the output folder."""

    resume: Flag = False
    """Continue the interrupted run in the output folder, from its last complete checkpoint."""


def words(options: Any) -> list[str]:
    """The arguments of a command line that gives these options; defaults are left out."""
    found: list[str] = []
    for field in fields(options):
        value, default = getattr(options, field.name), field.default
        if value == default and default is not MISSING:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif isinstance(value, tuple) and field.name in REPEATED:
            found += [word for each in value for word in (flag, str(each))]
        else:
            found += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return found
