"""The files of a study's finished runs, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crisp_attention.errors import OptionError
from crisp_attention.runs.task.metrics import ACCURACY, Metric
from crisp_attention.runs.task.target import Target
from crisp_attention.studies.folder import FinishedRun, StudyFolder, readable
from crisp_attention.studies.plan import Configuration
from crisp_attention.studies.statistics import expected_calibration_error

COLUMNS = [
    "seed",
    "score",
    "loss",
    "ece",
    "train_score",
    "train_loss",
    "gap",
    "achieved_sparsity",
    "kept_mass",
    "seconds_per_step",
    "peak_memory_bytes",
]


@dataclass(frozen=True)
class RunRead:
    """A finished run: its predictions on the split analysed, (examples,), and everything else in its files.

    row: its numbers, by the names of `COLUMNS`.
    metric: the study's, on the classes of this run where those are drawn for every seed.
    """

    predictions: NDArray
    row: Mapping[str, Any]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    history: pd.DataFrame
    measurements: pd.DataFrame | None
    metric: Metric


@dataclass(frozen=True)
class StudyRead:
    """All finished runs of a study, on the same examples.

    labels: (examples,), by index.
    runs: by configuration id, then by seed; those that diverged are left out.
    diverged: their seeds, by configuration id.
    """

    study: StudyFolder
    metric: Metric
    split: str
    labels: pd.Series
    runs: dict[str, dict[int, RunRead]]
    diverged: dict[str, tuple[int, ...]]

    @property
    def predicts_classes(self) -> bool:
        return self.labels.dtype.kind != "f"

    def shared_seeds(self, configuration: Configuration, baseline: Configuration) -> tuple[int, ...]:
        """The seeds with which both are finished."""
        return tuple(seed for seed in self.runs[configuration.id] if seed in self.runs[baseline.id])

    def predictions(self, configuration: Configuration, seeds: tuple[int, ...]) -> NDArray:
        """(seeds, examples)."""
        found = [self.runs[configuration.id][seed].predictions for seed in seeds]
        return np.stack(found) if found else np.empty((0, len(self.labels)), dtype=int)

    def correct(self, configuration: Configuration, seeds: tuple[int, ...]) -> NDArray[np.bool_]:
        """(seeds, examples): where it is right."""
        return self.predictions(configuration, seeds) == self.labels.to_numpy()

    def scored(self, configuration: Configuration, seeds: tuple[int, ...]) -> NDArray:
        """(seeds, examples): what the metric is the mean of."""
        labels, found = self.labels.to_numpy(), self.runs[configuration.id]
        per_example = [found[seed].metric.per_example for seed in seeds]
        return np.stack(
            [
                score(found[seed].predictions, labels)
                for seed, score in zip(seeds, per_example, strict=True)
                if score
            ]
        )

    def table(self, configuration: Configuration) -> pd.DataFrame:
        """`Line.runs`."""
        return pd.DataFrame([run.row for run in self.runs[configuration.id].values()], columns=COLUMNS)


def read_study(study: StudyFolder) -> StudyRead:
    """Read the test split if every finished run predicted it, else validation.

    Raises OptionError, naming them, for files that cannot be read and for runs on different examples.
    """
    ended = {each.id: study.ended(each) for each in study.configurations}
    finished = [run for runs in ended.values() for run in runs if not run.diverged]
    has_test = finished and all(run.directory.predictions("test").is_file() for run in finished)
    split = "test" if has_test else "validation"
    metric, labels = ACCURACY, pd.Series(dtype=int)
    runs: dict[str, dict[int, RunRead]] = {name: {} for name in ended}
    for run in finished:
        with readable(run.directory.predictions(split)):
            table = run.predictions(split)
            own = table["label"].astype("int64" if table["label"].dtype.kind in "iu" else "float64")
        if run is finished[0]:
            labels = own
            metric = _metric(run, study)
        if not own.equals(labels):
            raise OptionError(
                f"the runs {finished[0].directory.path.name} and {run.directory.path.name} in {study.path} "
                f"predicted different examples of {split}: they cannot be compared"
            )
        runs[run.configuration.id][run.seed] = _read(run, _metric(run, study), split, table)
    diverged = {name: tuple(run.seed for run in runs if run.diverged) for name, runs in ended.items()}
    return StudyRead(study, metric, split, labels, runs, diverged)


def _metric(run: FinishedRun, study: StudyFolder) -> Metric:
    with readable(run.directory.config):
        return Target.from_dict(run.config["task"]).metric(study.plan.metric)


def _read(run: FinishedRun, metric: Metric, split: str, table: pd.DataFrame) -> RunRead:
    with readable(run.directory.predictions(split)):
        predictions, labels = table["prediction"].to_numpy(), table["label"].to_numpy()
        ece = float("nan")
        if "logits" in table:
            ece = expected_calibration_error(np.stack(table["logits"].tolist()), labels)
    with readable(run.directory.metrics):
        metrics, train = run.metrics, run.metrics["train"]
        # runs of earlier versions computed accuracy alone
        score = metrics[split].get(metric.name, metric.score(predictions, labels))
        train_score = train[metric.name] if metric is ACCURACY else train.get(metric.name, float("nan"))
        validation = metrics["validation"]
        row = {
            "seed": run.seed,
            "score": score,
            "loss": metrics[split]["loss"],
            "ece": ece,
            "train_score": train_score,
            "train_loss": train["loss"],
            "gap": train_score - validation.get(metric.name, float("nan")),
        }
        row |= {column: metrics[column] for column in COLUMNS[len(row) :]}
        metrics["device"]  # named by the error that reads a damaged file
    with readable(run.directory.config):
        found = dict(run.config["versions"])
    return RunRead(predictions, row, metrics, found, run.history(), run.measurements(), metric)
