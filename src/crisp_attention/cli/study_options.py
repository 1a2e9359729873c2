"""What the commands for studies can be asked for. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from crisp_attention.runs.options import Count, Flag, RecipeOptions, Text, Texts


@dataclass(frozen=True)
class DemoOptions:
    """Compare dense with sparse attention on real data in a few minutes: 1,797 handwritten digits.

    A `crisp sweep`: a small Vision Transformer, trained from scratch on 270 of the images, with dense
    attention, top-k at several sparsities and random keys, tested on 1,497 others. Ends with the report.

    For example: crisp demo --output runs/demo --seeds 3
    """

    output: Path = Path("runs/demo")
    """Folder for the study. Run the same command again to continue."""

    seeds: int = 3
    """Runs per configuration."""

    sparsity: Annotated[
        tuple[str, ...], arg(metavar="FLOAT ...", help_behavior_hint="(default: 0.5,0.8)")
    ] = (
        "0.5",
        "0.8",
    )
    """Sparsities of top-k, split by commas or spaces."""

    workers: int = 2
    """Runs at a time; the cores are shared out among them."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Where a study is kept and who works on it: what may change when a study is continued."""

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
    """Run again what failed before."""


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

    method: Texts = ("topk", "random")
    """Methods, by commas: such as topk,random or topk,window:width=9; `crisp methods` lists them.
    Default: topk,random."""

    sparsity: Annotated[tuple[str, ...], arg(metavar="FLOAT ...", help_behavior_hint="")] = ()
    """Sparsities, by commas, for every method that has one and does not say it itself; 0 is dense.
    Default: 0.8. With --search: the bounds, by default 0.3 and 0.95."""

    seeds: int = 5
    """Runs per configuration; at least 3 for a comparison. With --search: of the confirmation."""

    recipe: UseAppendAction[
        Annotated[tuple[str, ...], arg(metavar="METHOD:KEY=VALUE", help_behavior_hint="")]
    ] = ()
    """A learning rate or number of epochs for one method, such as dense:epochs=5:learning_rate=3e-5."""

    search: Flag = False
    """Let Optuna choose method, sparsity, schedule, layers and learning rate on the validation split, for dense
    and sparse alike; then run the best of each, and the random control, with fresh seeds. Needs a labelled
    test split to judge them on."""

    trials: Count = None
    """With --search: runs to choose from; a third of them are dense. Default: 30."""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(StudyOptions):
    """The experiment of the Crisp Attention paper (arXiv 2508.06016), with seeds and a random control.

    DistilBERT on SST-2: dense, top-k at 40, 60 and 80 %, random keys at 80 %. The paper publishes two
    accuracies and no recipe; the report shows them next to what was found here.

    For example: crisp reproduce --output runs/paper
    """

    model: str = "distilbert-base-uncased"
    """A hub id, a folder of a model or a run, or `builtin:minilm`."""

    dataset: str = "stanfordnlp/sst2"
    """A hub id (`id:configuration` where it has several), a file, or a folder, as for `crisp finetune`."""

    revision: Text = None
    """For a data set of the Hub: the branch, tag or commit to read. Default: its newest."""

    seeds: int = 5
    """Runs per configuration."""

    train_examples: Count = None
    """Train on this many examples, the same ones for every seed. Default: all."""

    training: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")]] = ()
    """Any other field of transformers.TrainingArguments, for example bf16=true."""


@dataclass(frozen=True)
class ReportOptions:
    """Say what a study found, with how much certainty: one HTML page, tables, figures, a summary in Markdown.

    With two studies, the configurations that both have are compared.

    For example:
      crisp report --output reports/sst2 runs/sst2
      crisp report runs/sst2 runs/sst2-more-epochs
    """

    studies: Positional[Annotated[tuple[Path, ...], arg(metavar="STUDY", help_behavior_hint="")]]
    """The folder of a study of `crisp sweep`, or two."""

    output: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Folder for the report; an earlier report there is replaced. Default: `report` in the study's folder."""
