"""What the finished runs of a study answered, example by example."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crisp_attention.errors import OptionError
from crisp_attention.studies.statistics import expected_calibration_error
from crisp_attention.studies.study import Configuration, FinishedRun, Study, readable


@dataclass(frozen=True)
class RunAnswers:
    """A finished run with its predictions of the split analysed, (examples,)."""

    run: FinishedRun
    predictions: NDArray[np.integer]
    ece: float


@dataclass(frozen=True)
class Answers:
    """The answers of all finished runs on the same examples.

    index, labels: (examples,).
    runs: by configuration id, then by seed.
    """

    split: str
    index: NDArray[np.integer]
    labels: NDArray[np.integer]
    runs: dict[str, dict[int, RunAnswers]]

    def shared_seeds(self, configuration: Configuration, baseline: Configuration) -> tuple[int, ...]:
        """The seeds with which both are finished."""
        return tuple(seed for seed in self.runs[configuration.id] if seed in self.runs[baseline.id])

    def predictions(self, configuration: Configuration, seeds: tuple[int, ...]) -> NDArray[np.integer]:
        """(seeds, examples)."""
        found = [self.runs[configuration.id][seed].predictions for seed in seeds]
        return np.stack(found) if found else np.empty((0, len(self.index)), dtype=int)

    def correct(self, configuration: Configuration, seeds: tuple[int, ...]) -> NDArray[np.bool_]:
        """(seeds, examples): where it is right."""
        return self.predictions(configuration, seeds) == self.labels


def read_answers(study: Study) -> Answers:
    """The predictions of the test split if every finished run has them, else of validation.

    Raises OptionError, naming them, for files that cannot be read and for runs on different examples.
    """
    finished = [run for each in study.configurations for run in study.finished(each)]
    has_test = finished and all(run.directory.predictions("test").is_file() for run in finished)
    split = "test" if has_test else "validation"
    index = labels = np.empty(0, dtype=int)
    runs: dict[str, dict[int, RunAnswers]] = {each.id: {} for each in study.configurations}
    for run in finished:
        with readable(run.directory.predictions(split)):
            table = run.predictions(split)
            logits = np.stack(table["logits"].tolist())
            answers = RunAnswers(
                run,
                table["prediction"].to_numpy(),
                expected_calibration_error(logits, table["label"].to_numpy()),
            )
            own_index, own_labels = table.index.to_numpy(), table["label"].to_numpy()
        if run is finished[0]:
            index, labels = own_index, own_labels
        if not (np.array_equal(index, own_index) and np.array_equal(labels, own_labels)):
            raise OptionError(
                f"the runs {finished[0].directory.path.name} and {run.directory.path.name} in {study.path} "
                f"predicted different examples of {split}: they cannot be compared"
            )
        runs[run.configuration.id][run.seed] = answers
    return Answers(split, index, labels, runs)


def metrics_of(run: FinishedRun) -> dict[str, Any]:
    """The run's metrics. Raises OptionError if they cannot be read."""
    with readable(run.directory.metrics):
        return run.metrics
