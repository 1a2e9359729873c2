"""The results of a trained model on every split, example by example, what its attention keeps, and figures of both."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from transformers import EvalPrediction, Trainer

from crisp_attention.drawing.maps import draw_map, draw_scale
from crisp_attention.drawing.palette import BLUE, VERMILLION
from crisp_attention.drawing.style import DPI, finish, new_figure
from crisp_attention.insight.measuring import Measurement, measuring
from crisp_attention.models.sparse_model import is_sparse
from crisp_attention.runs.data.splits import sample
from crisp_attention.runs.progress import RunProgress
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.runs.sources import Source
from crisp_attention.runs.task import Metric, Target, Task
from crisp_attention.runs.terminal import is_main
from crisp_attention.runs.trainer import longest_first
from crisp_attention.runs.treatment import ModelTreatment

MEASURED_EXAMPLES = 512
TRAIN_EXAMPLES_EVALUATED = 2000


def draw_learning(log: pd.DataFrame, metric: Metric, path: Path) -> None:
    """Training and validation loss, and the metric on validation, against epochs, from the Trainer's log."""
    figure = new_figure(9, 3.6)
    losses, scores = figure.subplots(1, 2)
    _curve(losses, log, "loss", "training", BLUE, marker="")
    _curve(losses, log, "eval_loss", "validation", VERMILLION, marker="o")
    losses.set(title="Loss", xlabel="epoch", ylabel="mean loss per example")
    if losses.lines:
        losses.legend(frameon=False)
    column, unit = f"eval_{metric.name}", 100 if metric.percent else 1
    shown = log.assign(**{column: unit * log.get(column, pd.Series(dtype=float))})
    _curve(scores, shown, column, "validation", VERMILLION, marker="o")
    label = f"{metric.title} (%)" if metric.percent else metric.title
    scores.set(title=f"Validation {metric.title}", xlabel="epoch", ylabel=label)
    for axes in (losses, scores):
        axes.set_xlim(0, log["epoch"].max() * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=bool(log["epoch"].max() >= 2)))
        finish(axes, "both")
    figure.savefig(path, dpi=DPI)


def draw_heads(table: pd.DataFrame, path: Path) -> None:
    """Achieved sparsity and kept mass of every layer and head, from `Measurement.table()`."""
    figure = new_figure(9, min(max(2.2 + 0.22 * table["layer"].nunique(), 3.0), 9.0))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, title in zip(
        panels, ("sparsity", "kept_mass"), ("Achieved sparsity", "Kept softmax mass"), strict=True
    ):
        grid = 100 * table.pivot(index="layer", columns="head", values=column)
        mean = grid.stack().mean()  # without NaN: heads that a layer with fewer heads does not have
        image = draw_map(
            axes, grid, title if np.isnan(mean) else f"{title} (mean {mean:.1f} %)", low=0, high=100
        )
    panels[1].set_ylabel("")
    draw_scale(list(panels), image, "%")
    figure.savefig(path, dpi=DPI)


def _curve(axes: Axes, log: pd.DataFrame, column: str, name: str, colour: str, marker: str) -> None:
    if column in log and not (seen := log.dropna(subset=[column])).empty:
        axes.plot(seen["epoch"], seen[column], color=colour, marker=marker, markersize=4, label=name)


def scores_of(target: Target, prediction: EvalPrediction) -> dict[str, float]:
    """Every metric of the target, of what the Trainer predicted."""
    return target.scores(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))


def evaluate(trainer: Trainer, target: Target, split: Dataset, path: Path | None = None) -> dict[str, Any]:
    """All metrics, mean loss and number of examples of a split; writes one row per example to `path`.

    The columns are index (row number in the split, in order), label, prediction (for classes -1 where a logit is
    not finite), and for classes the list of logits.
    """
    output = trainer.predict(split, metric_key_prefix="split")
    if path is not None:
        logits = np.asarray(output.predictions, dtype=np.float32)
        table = pd.DataFrame(
            {
                "index": np.asarray(split["index"]),
                "label": output.label_ids,
                **target.columns(logits),
            }
        )
        table.sort_values("index").to_parquet(path, compression="zstd", index=False)
    found = output.metrics or {}
    scores = {name: found[f"split_{name}"] for name in target.scored}
    return scores | {"loss": found["split_loss"], "examples": len(split)}


def results(
    trainer: Trainer,
    source: Source,
    task: Task,
    directory: RunDirectory,
    progress: RunProgress,
    metric: Metric,
    *,
    measured: bool = True,
    treatment: ModelTreatment | None = None,
) -> dict[str, Any]:
    """Evaluate every split of the encoded task, measure the attention, and plot the main `metric` over training.

    Writes predictions, measurements, the log and figures. All processes of a run compute, and the main one writes.
    `measured` False leaves out the attention of a dense model that Crisp cannot observe: by definition it
    drops nothing and keeps all mass, and its entropy is not known. `treatment` is measured in place of the attention.
    """
    splits = {"validation": trainer.eval_dataset}
    if "test" in task.splits:
        splits["test"] = longest_first(task.splits["test"])
    metrics: dict[str, Any] = {}
    for name, split in splits.items():
        progress.phase = name
        metrics[name] = evaluate(
            trainer, task.target, split, directory.predictions(name) if is_main() else None
        )
    progress.phase = "training examples"
    metrics["train"] = evaluate(trainer, task.target, sample(trainer.train_dataset, TRAIN_EXAMPLES_EVALUATED))
    if treatment is not None:
        metrics |= _measure_treatment(trainer, treatment, directory)
        if is_sparse(source.model):
            progress.phase = "measuring attention"
            metrics["attention"] = _measure(trainer, source, directory, directory.attention)
    elif measured:
        progress.phase = "measuring attention"
        metrics |= _measure(trainer, source, directory, directory.measurements)
    else:
        metrics |= {"achieved_sparsity": 0.0, "kept_mass": 1.0, "entropy": None}
    if is_main():
        history = pd.DataFrame(trainer.state.log_history)
        history.to_csv(directory.history, index=False)
        draw_learning(history, metric, directory.figures / "learning.png")
    return metrics


def _measure(trainer: Trainer, source: Source, directory: RunDirectory, file: Path) -> dict[str, float]:
    with measuring(source.model) as measured, torch.no_grad():
        trainer.predict(sample(trainer.eval_dataset, MEASURED_EXAMPLES))
    whole = Measurement()
    for names, totals in gather_object([(measured.names, measured.totals)]):
        whole.add(Measurement(names, totals))
    if is_main():
        table = whole.table()
        table.to_csv(file, index=False)
        draw_heads(table, directory.figures / "heads.png")
    summary = whole.summary()
    return {
        "achieved_sparsity": float(summary["sparsity"]),
        "kept_mass": float(summary["kept_mass"]),
        "entropy": float(summary["entropy"]),
    }


def _measure_treatment(
    trainer: Trainer, treatment: ModelTreatment, directory: RunDirectory
) -> dict[str, float | None]:
    model: Any = trainer.model
    table = treatment.measure(model)
    if is_main():
        table.to_csv(directory.measurements, index=False)
    return {
        "achieved_sparsity": float(np.average(table["sparsity"], weights=table.get("weights"))),
        "kept_mass": None,
        "entropy": None,
    }
