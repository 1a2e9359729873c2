"""The runs of a configuration as a table, and its means."""

from collections.abc import Mapping

import pandas as pd

from crisp_attention.studies.analysis.answers import Answers, metrics_of
from crisp_attention.studies.analysis.results import Comparison, Line
from crisp_attention.studies.statistics import seeds_interval
from crisp_attention.studies.study import Configuration, Study, readable

COLUMNS = [
    "seed",
    "accuracy",
    "loss",
    "ece",
    "train_accuracy",
    "train_loss",
    "gap",
    "achieved_sparsity",
    "kept_mass",
    "seconds_per_step",
    "peak_memory_bytes",
]


def runs_table(configuration: Configuration, answers: Answers) -> pd.DataFrame:
    """`Line.runs`. Raises OptionError for metrics that lack something."""
    rows = []
    for seed, of_run in answers.runs[configuration.id].items():
        metrics = metrics_of(of_run.run)
        with readable(of_run.run.directory.metrics):
            accuracy, train_accuracy = metrics[answers.split]["accuracy"], metrics["train"]["accuracy"]
            row = {
                "seed": seed,
                "accuracy": accuracy,
                "loss": metrics[answers.split]["loss"],
                "ece": of_run.ece,
                "train_accuracy": train_accuracy,
                "train_loss": metrics["train"]["loss"],
                "gap": train_accuracy - metrics["validation"]["accuracy"],
            }
            rows.append(row | {column: metrics[column] for column in COLUMNS[len(row) :]})
    return pd.DataFrame(rows, columns=COLUMNS)


def line(
    study: Study,
    configuration: Configuration,
    tables: Mapping[str, pd.DataFrame],
    to_dense: Comparison | None,
    to_random: Comparison | None,
) -> Line:
    """The means of a configuration's runs, next to those of dense; `tables` by configuration id."""
    runs, dense_runs = tables[configuration.id], tables[study.dense.id]
    relative = runs.mean().astype(float) / dense_runs.mean().astype(float)  # objects where there are no runs
    kernels = {name for run in study.finished(configuration) for name in metrics_of(run).get("kernels", ())}
    return Line(
        configuration=configuration,
        runs=runs,
        kernels=tuple(sorted(kernels)),
        diverged=tuple(run.seed for run in study.diverged(configuration)),
        accuracy=seeds_interval(runs["accuracy"].tolist()),
        sd=float(runs["accuracy"].std()),
        relative_time=float(relative["seconds_per_step"]),
        relative_memory=float(relative["peak_memory_bytes"]),
        to_dense=to_dense,
        to_random=to_random,
    )
