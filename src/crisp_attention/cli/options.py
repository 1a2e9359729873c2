"""What the commands can be asked for. Imports nothing heavy, for the sake of `crisp --help`."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from crisp_attention.flags import Count, Flag, Real, Text, Texts, named

REPEATED = ("training", "recipe")  # options that are given again for each value


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Model, data and training: what every run has."""

    model: str
    """A hub id, the folder of a model or of a run, `builtin:minilm` (pretrained text encoder) or `builtin:vit` (small,
    random)."""

    dataset: str
    """A hub id (`id:configuration` where it has several), a parquet, csv, tsv, json or jsonl file, a folder of such
    files named train, validation and test or of images by class, or `builtin:digits`."""

    revision: Text = None
    """For a data set of the Hub: the branch, tag or commit to read. Default: the latest."""

    text_columns: Texts = ()
    """One or two text columns. Default: detected automatically."""

    image_column: Text = None
    """The image column. Default: detected automatically."""

    label_column: Text = None
    """The label column. Default: detected automatically."""

    train_examples: Count = None
    """Train on this many examples, the same ones for every seed. Default: all."""

    classes: Texts = ()
    """Train on the examples of these classes alone, by name or number, separated by commas (or spaces, where no name
    has one), and judge by the accuracy on them. Default: all."""

    draw_classes: Count = None
    """In place of --classes: how many classes, drawn anew for every seed."""

    epochs: float = 3.0
    """Passes over the training examples."""

    batch_size: int = 32
    """Examples per training step and device."""

    max_length: Count = None
    """For text: longer ones are cut to this many tokens, or to fewer where the model or its tokenizer takes fewer.
    Default: 128."""

    training: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")]] = ()
    """Any other field of transformers.TrainingArguments, for example weight_decay=0.01."""

    metric: Annotated[
        str | None,
        arg(metavar="{accuracy,f1,mcc,pearson,spearman,rmse,class_accuracy}", help_behavior_hint=""),
    ] = None
    """The main metric, which verdicts follow and, if given, the choice of the best checkpoint too, instead of the loss.
    Default: accuracy for classes, that on the user's classes where there are such, pearson for numbers."""

    report_to: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Log the run there too; TensorBoard's files go into the run's folder."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(TrainingOptions):
    """With how attention is made sparse: the options that the runs of a study share."""

    learning_rate: float = 2e-5
    """Peak learning rate (AdamW, linear decay)."""

    layers: Texts = ()
    """Attention layers to make sparse: indices, ranges (2-5) or name patterns. Default: all."""

    attention: Literal["self", "cross", "all"] = "self"
    """Which attention to make sparse in encoder-decoder models."""

    phase: Literal["always", "train", "eval"] = "always"
    """When attention is sparse: in training, in evaluation, or in both."""

    schedule: Literal["constant", "linear", "cosine", "cubic"] = "constant"
    """How the sparsity rises from 0 during training; `constant` means full sparsity from the start."""

    ramp: Annotated[tuple[float, float] | None, arg(metavar="BEGIN END", help_behavior_hint="")] = None
    """Fractions of training between which the sparsity rises. Default: 0 0.5."""


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
    """Keep no model, only the results: configuration, metrics, predictions, figures."""

    overwrite: Flag = False
    """Replace the run in the output folder."""

    resume: Flag = False
    """Continue the interrupted run in the output folder, from its last complete checkpoint."""


@dataclass(frozen=True)
class ProfileOptions:
    """Find out where sparsity is safe: what every layer and head keeps of its dense attention.

    One pass of the dense model over examples of the data. Prints what each layer keeps, and budgets
    for every head.

    For example:
      crisp profile --model distilbert-base-uncased --dataset stanfordnlp/sst2 --save budgets.json
    """

    model: str
    """A hub id, the folder of a model or of a run, `builtin:minilm` (pretrained text encoder) or `builtin:vit` (small,
    random)."""

    dataset: str
    """A hub id (`id:configuration` where it has several), a parquet, csv, tsv, json or jsonl file, a folder of such
    files named train, validation and test or of images by class, or `builtin:digits`."""

    output: Path = Path("runs/profile")
    """Folder for heads.csv, curves.csv and profile.png; what an earlier profile left there is replaced."""

    save: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the recommended budgets to this file, for `crisp finetune --budgets` and `crisp.budgets`."""

    sparsity: Real = None
    """Recommend the budgets that keep most mass with no more pairs than this sparsity in all heads. Default: 0.8."""

    mass: Real = None
    """In place of --sparsity: the sparsest budgets with which every head keeps this share of its mass, in (0, 1]."""

    method: Literal["topk", "block_topk"] = "topk"
    """The method that the budgets are for."""

    block_size: int = 16
    """Keys in a block, for block_topk."""

    split: Literal["train", "validation"] = "train"
    """The split that the examples are drawn from."""

    classes: Texts = ()
    """Examples of these classes alone, by name or number, separated by commas, or spaces where no name has one.
    Default: all."""

    examples: int = 512
    """How many examples, drawn at random, the same ones every time; all if there are fewer."""

    batch_size: int = 32
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


@dataclass(frozen=True)
class MethodsOptions:
    """List the methods that `--method` takes, with their options."""


@dataclass(frozen=True)
class DemoOptions:
    """Compare dense with sparse attention on real data in a few minutes: 1,797 handwritten digits.

    A `crisp sweep`: a small Vision Transformer, trained from scratch on 270 of the images, with dense attention,
    top-k and random keys, tested on 1,497 others. Ends with the report. Takes several minutes on two cores.

    For example: crisp demo --output runs/demo --seeds 3
    """

    output: Path = Path("runs/demo")
    """Folder for the study. Run the same command again to continue."""

    seeds: int = 3
    """Runs per configuration."""

    sparsity: Annotated[tuple[str, ...], arg(metavar="FLOAT ...", help_behavior_hint="(default: 0.8)")] = (
        "0.8",
    )
    """Sparsities of top-k, separated by commas or spaces."""

    epochs: float = 14.0
    """Passes over the training images with sparse attention; dense takes three times as many. The study in
    docs/results.md uses 40."""

    workers: int = 2
    """Runs at a time; the cores are shared out among them."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Where a study is kept and how its runs are worked on: what may change when a study is continued."""

    output: Path
    """Folder for the study: its runs, study.json and report. Run the same command again to continue."""

    workers: int = 1
    """Runs at a time on this machine; the cores, and the GPUs, are shared out among them."""

    storage: Annotated[str | None, arg(metavar="URL", help_behavior_hint="")] = None
    """URL of the Optuna storage, for example postgresql://user@host/database, from which several machines
    pull runs. Default: a SQLite file in the output folder."""

    study: Text = None
    """Name of the study in the storage. Default: that of the output folder."""

    keep_models: Flag = False
    """Keep models of runs started from now on. Default: measurements only."""

    retry_failed: Flag = False
    """Repeat the runs that failed before."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions(RecipeOptions, StudyOptions):
    """Does sparse attention help on your task? Fine-tune dense and sparse models with several seeds, and report.

    Every method runs at every sparsity with every seed; dense always runs too. Interrupt it at any time: run the
    same command again to continue. With more seeds, methods or sparsities the study grows, and what is finished is
    kept. It ends with `crisp report`.

    For example:
      crisp sweep --model distilbert-base-uncased --dataset stanfordnlp/sst2 --method topk,random \\
        --sparsity 0.5,0.8 --seeds 5 --output runs/sst2
    """

    method: Texts = ()
    """Methods, separated by commas, such as topk,random or topk,window:width=9; `crisp methods` lists them.
    Default: topk,random; with --treatment none."""

    treatment: Texts = ()
    """What is done to weights, separated by commas: prune and its options, such as prune,prune:gradients=random;
    `crisp prune --help` explains them. Default: nothing."""

    sparsity: Annotated[tuple[str, ...], arg(metavar="FLOAT ...", help_behavior_hint="")] = ()
    """Sparsities, separated by commas, for every method and treatment that does not set its own; 0 is dense.
    Default: 0.8. With --search: the bounds, by default 0.3 and 0.95."""

    seeds: int = 5
    """Runs per configuration; at least 3 for a comparison. With --search: those of the confirmation."""

    recipe: UseAppendAction[
        Annotated[tuple[str, ...], arg(metavar="METHOD:KEY=VALUE", help_behavior_hint="")]
    ] = ()
    """A learning rate or number of epochs for one method, such as dense:epochs=5:learning_rate=3e-5."""

    search: Flag = False
    """Let Optuna choose method, sparsity, schedule, layers and learning rate on the validation split, for dense
    and sparse alike; then run the best of each, and the random control, with fresh seeds. Needs a labelled
    test split to judge them on."""

    trials: Count = None
    """With --search: how many runs to choose from; a third of them are dense. Default: 30."""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(StudyOptions):
    """Repeat the experiment of the Crisp Attention paper (arXiv 2508.06016), with several seeds and a random control.

    DistilBERT on SST-2: dense, top-k at 40, 60 and 80 %, random keys at 80 %. The paper publishes two
    accuracies and no recipe; the report shows them next to the results here.

    For example: crisp reproduce --output runs/paper
    """

    model: str = "distilbert-base-uncased"
    """A hub id, the folder of a model or of a run, or `builtin:minilm`."""

    dataset: str = "stanfordnlp/sst2"
    """A hub id (`id:configuration` where it has several), a file, or a folder, as for `crisp finetune`."""

    revision: Text = None
    """For a data set of the Hub: the branch, tag or commit to read. Default: the latest."""

    seeds: int = 5
    """Runs per configuration."""

    train_examples: Count = None
    """Train on this many examples, the same ones for every seed. Default: all."""

    training: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")]] = ()
    """Any other field of transformers.TrainingArguments, for example bf16=true."""


@dataclass(frozen=True)
class ReportOptions:
    """Report what a study found and how certain it is: one HTML page, tables, figures, a summary in Markdown.

    With two studies, the configurations that both have are compared.

    For example:
      crisp report --output reports/sst2 runs/sst2
      crisp report runs/sst2 runs/sst2-more-epochs
    """

    studies: Positional[Annotated[tuple[Path, ...], arg(metavar="STUDY", help_behavior_hint="")]]
    """The folder of a study of `crisp sweep`, or two."""

    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder for the report; an earlier report there is replaced. Default: `report` in the study's folder."""


def run_values(options: Any) -> dict[str, Any]:
    """The options by name, with the classes one by one."""
    return vars(options) | {"classes": tuple(named(options.classes))}


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
