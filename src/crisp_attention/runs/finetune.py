"""`crisp.finetune`: one run, from values to a folder that holds everything about it."""

import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict
from rich.console import Console
from transformers import PreTrainedModel, TrainerCallback

from crisp_attention.errors import OptionError
from crisp_attention.files import finite, write_json
from crisp_attention.kernels.recording import recording
from crisp_attention.methods.method import AnyMethod
from crisp_attention.methods.rules.topk import TopK
from crisp_attention.models.notice import SparseCheckpointLoadedDense
from crisp_attention.models.persistence import load
from crisp_attention.models.sparse_model import is_sparse
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.card import write_card
from crisp_attention.runs.costs import KernelsUsed, PeakMemory
from crisp_attention.runs.evaluation import results
from crisp_attention.runs.prepare import prepare
from crisp_attention.runs.processes import agreed
from crisp_attention.runs.run_directory import RunDirectory, check_resuming, newest_checkpoint
from crisp_attention.runs.spec import Budgets, Data, PerHead, Recipe, RunSpec
from crisp_attention.runs.task import Target
from crisp_attention.runs.terminal import is_main, quietly, say
from crisp_attention.schedule import Schedule

if TYPE_CHECKING:
    from peft import PeftModel

TOPK, RECIPE = TopK(), Recipe()


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: its measurements and its files.

    Attributes
    ----------
    directory
        The run's folder: config.json, metrics.json, predictions, measurements, figures, the model.
    metrics
        What metrics.json holds: ``metrics["validation"]["accuracy"]``; sparsity, kept mass, seconds, bytes.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> run = crisp.Run.open("runs/first")
    >>> run.metrics["validation"]["accuracy"]
    0.5
    >>> run.predictions()["prediction"].tolist()[:4]
    [0, 0, 0, 0]
    """

    directory: Path
    metrics: dict[str, Any]

    @staticmethod
    def open(directory: str | Path) -> "Run":
        """The finished run in a folder.

        Raises
        ------
        OptionError
            If the folder holds no finished run.
        """
        found = RunDirectory(Path(directory))
        if not found.complete:
            raise OptionError(f"{directory} holds no finished run: expected {found.metrics.name}")
        return Run(found.path, found.read_metrics())

    def predictions(self, split: str = "validation") -> pd.DataFrame:
        """One row per example of a split, in its order: label and prediction, and for classes the logits.

        Raises
        ------
        OptionError
            If the run predicted no such split.
        """
        file = RunDirectory(self.directory).predictions(split)
        if not file.is_file():
            have = [
                name
                for name in ("validation", "test")
                if RunDirectory(self.directory).predictions(name).is_file()
            ]
            raise OptionError(
                f"the run in {self.directory} has no predictions of {split!r}; it has {', '.join(have)}"
            )
        return pd.read_parquet(file).set_index("index").sort_index()

    def model(self) -> "PreTrainedModel | PeftModel":
        """The model at the end of the run, sparse as it was trained.

        Raises
        ------
        OptionError
            If the run kept no model.
        """
        folder = RunDirectory(self.directory).model
        if not folder.is_dir():
            raise OptionError(f"the run in {self.directory} kept no model; keep_model=True keeps it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparseCheckpointLoadedDense)  # a dense run is meant to be dense
            return load(folder)

    @property
    def target(self) -> Target:
        """What was predicted, and all metrics of it."""
        return RunDirectory(self.directory).target()

    def __repr__(self) -> str:
        seen = self.metrics.get("validation", {})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in seen.items() if isinstance(value, float))
        return f"Run({str(self.directory)!r}: validation {shown})"


def finetune(
    model: str | Path,
    data: str | Path | Dataset | Mapping[str, Dataset] | Data,
    *,
    output: str | Path,
    method: AnyMethod | PerHead | Budgets = TOPK,
    layers: Sequence[str | int] = (),
    attention: str = "self",
    phase: str = "always",
    schedule: Schedule | None = None,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    metric: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
    overwrite: bool = False,
    keep_model: bool = True,
    verbose: bool = True,
) -> Run:
    """Fine-tune a model with sparse attention, evaluate it, and keep everything in one folder.

    Parameters
    ----------
    model
        A hub id, the folder of a model or of a run, ``"builtin:minilm"`` (pretrained text encoder) or
        ``"builtin:vit"`` (small, random).
    data
        A DatasetDict or a mapping of splits, which is saved in the run's folder; a folder, a file, a hub id or
        ``"builtin:digits"``; or `crisp.Data`, which also names columns.
    output
        Folder for the run.
    method
        What `crisp.sparsify` takes, or budgets. `crisp.Dense()` keeps the model's own attention.
    layers, attention, phase
        As in `crisp.sparsify`; no layers are all.
    schedule
        How the sparsity rises to that of the method during training. None for the same from the start.
    recipe
        Epochs, batch size, learning rate and other settings of the training.
    seed
        Of the classifier's initial weights, the order of examples, dropout and random keys.
    metric
        The main metric, such as ``"mcc"``, by which the best checkpoint is chosen if one is asked for. None for that
        of the task, with the loss for the checkpoint.
    callbacks
        More callbacks for transformers' Trainer.
    resume
        Continue the interrupted run in `output` from its last complete checkpoint; a finished one is not repeated.
    overwrite
        Replace the run in `output`.
    keep_model
        Whether to keep the model; otherwise only measurements are kept.
    verbose
        Whether notes and progress are printed to standard error.

    Returns
    -------
    Run
        Its metrics, predictions and model.

    Raises
    ------
    OptionError, DataError, CheckpointError
        Before anything is trained and before the folder changes, for what cannot work.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> recipe = crisp.Recipe(epochs=1, batch_size=8)
    >>> run = crisp.finetune(
    ...     "bert-tiny", "reviews", method=crisp.TopK(0.8), output="runs/second", recipe=recipe, verbose=False
    ... )
    >>> round(run.metrics["achieved_sparsity"], 2)  # k is rounded up, and the texts are short
    0.75
    """
    spec = RunSpec(
        model=str(model),
        data=as_data(data),
        method=method,  # type: ignore[arg-type]
        layers=layers,  # type: ignore[arg-type]
        attention=attention,
        phase=phase,
        schedule=schedule,
        recipe=recipe,
        seed=seed,
        metric=metric,
    )
    console = Console(stderr=True, quiet=not verbose)
    with quietly():
        return carry_out(
            spec, Path(output), console, callbacks, resume=resume, overwrite=overwrite, keep_model=keep_model
        )


def carry_out(
    spec: RunSpec,
    output: Path,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_model: bool = True,
    command: Sequence[str] = (),
) -> Run:
    """Do a run, or what is left of it.

    Notes and progress go to `console`. `command` is what was typed: it is recorded, by default that of the process,
    and shown on the model's card. Of several processes, started by torchrun or accelerate launch, the main one alone
    writes and prints; the folder must be one that all see. Raises as `finetune` does, in all processes.
    """
    console = console if console and is_main() else Console(quiet=True)
    directory = RunDirectory(output)
    held = spec.data.source if isinstance(spec.data.source, DatasetDict) else None
    recorded = spec if held is None else replace(spec, data=replace(spec.data, source=str(directory.data)))
    arguments = training_arguments(spec, directory.checkpoints)
    with agreed():
        directory.check(
            recorded, resume=resume, overwrite=overwrite, processes=arguments.world_size, held=held
        )
        if resume and directory.complete:
            say(console, f"the run in {output} is already finished")
            return Run(output, directory.read_metrics())
        if resume:
            check_resuming()
        needed = spec.treatment.checkpoint_files if spec.treatment else ()
        checkpoint, passed_over = (
            newest_checkpoint(directory.checkpoints, arguments.world_size, needed) if resume else (None, ())
        )
        evaluated_first = arguments.eval_on_start
        arguments.eval_on_start = evaluated_first and checkpoint is None
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(directory.tensorboard)  # read where report_to asks for it
        kernels, memory = KernelsUsed(), PeakMemory()
        ready = prepare(spec, arguments, [kernels, memory, *callbacks], console)
    trainer, task = ready.trainer, ready.task
    sizes = {name: len(split) for name, split in task.splits.items()}
    with agreed():
        if is_main():
            resolved = {
                "command": list(command or sys.argv),
                "task": {
                    "text_columns": task.text_columns,
                    "image_column": task.image_column,
                    **task.target.to_dict(),
                    "examples": sizes,
                },
                "processes": arguments.world_size,
                "notes": list(ready.notes),
            }
            directory.claim(recorded, resolved, resume=resume, overwrite=overwrite, held=held)
    say(console, *ready.notes, f"examples: {', '.join(f'{size:,} {name}' for name, size in sizes.items())}")
    if resume:
        say(console, *passed_over, f"continuing from {checkpoint.name if checkpoint else 'the beginning'}")

    with ready.progress, recording() as kernels.used:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        metrics = results(
            trainer,
            ready.source,
            task,
            directory,
            ready.progress,
            ready.metric,
            measured=ready.unmeasured is None,
            treatment=spec.treatment,
        )
    if evaluated_first:
        first = next(each for each in trainer.state.log_history if "eval_loss" in each)
        metrics["before"] = {name: first[f"eval_{name}"] for name in (*task.target.scored, "loss")}
    metrics |= {
        "metric": ready.metric.name,
        "steps": trainer.state.global_step,
        "seconds_per_step": ready.times.median(),
        "train_seconds": ready.times.total(),
        # of the process that took most
        "peak_memory_bytes": max(gather_object([memory.peak])),
        "peak_memory_of": "training" if memory.of_training else "process",
        "device": str(arguments.device),
        "kernels": sorted(kernels.used)
        if is_sparse(ready.source.model)
        else [ready.source.model.config._attn_implementation],
    }
    metrics = finite(gather_object([metrics])[0])  # the main process's times
    with agreed():
        if keep_model:
            trainer.save_model(str(directory.model))
        if is_main():
            if keep_model:
                (directory.model / "training_args.bin").unlink(
                    missing_ok=True
                )  # a pickle; config.json says the same
                if ready.source.processor is not None:
                    ready.source.processor.save_pretrained(directory.model)
                images = task.image_column is not None
                write_card(directory.model, recorded, task.target, metrics, command, images=images)
            write_json(directory.metrics, metrics)  # last: its presence says that the run is complete
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return Run(output, metrics)


def as_data(data: str | Path | Dataset | Mapping[str, Dataset] | Data) -> Data:
    """The data that a name, a path, a Dataset or its splits stand for."""
    if isinstance(data, Data):
        return data
    if isinstance(data, Dataset):
        return Data(source=DatasetDict({"train": data}))
    return Data(source=DatasetDict(data) if isinstance(data, Mapping) else data)
