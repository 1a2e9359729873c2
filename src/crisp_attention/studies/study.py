"""A study as it lies in its folder: which runs there should be, and what each of them measured.

The folder is the truth for all evidence; Optuna's storage only says who works on what.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from crisp_attention.errors import OptionError, first_line
from crisp_attention.methods.method import Method
from crisp_attention.methods.rules import Dense, RandomK
from crisp_attention.methods.spec import parse
from crisp_attention.runs.run_directory import RunDirectory

STUDY = "study.json"
RUNS = "runs"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Configuration:
    """One line of a comparison: a method, and the recipe with which it is trained.

    method: its spec, such as `topk:sparsity=0.8`; `dense` is the model's own attention.
    schedule, layers: as for `crisp finetune`.
    note: what a reader of the report should know of it.
    """

    method: str
    learning_rate: float
    epochs: float
    schedule: str = "constant"
    layers: tuple[str, ...] = ()
    note: str = ""

    @property
    def id(self) -> str:
        """The spec in letters that any file system takes; the run folders are named after it."""
        return re.sub(r"[^\w.]+", "-", self.method)

    @property
    def name(self) -> str:
        """The name of the method without its options: `topk`, `window+topk`."""
        return parse(self.method).name

    @property
    def sparsity(self) -> float | None:
        """Target sparsity: 0 for dense, None for a method that has none."""
        return 0.0 if self.is_dense else parse(self.method).sparsity

    @property
    def label(self) -> str:
        """For people: `dense`, `topk 80 %`, or the spec where options other than the sparsity were given."""
        if self.is_dense or self.method != f"{self.name}:sparsity={self.sparsity}":
            return self.method
        return f"{self.name} {100 * (self.sparsity or 0):.3g} %"

    @property
    def is_dense(self) -> bool:
        return self.method == Dense.name

    @property
    def is_random(self) -> bool:
        """Whether it is a control: keys drawn at random."""
        return isinstance(parse(self.method).rule, RandomK)


def run_name(configuration: Configuration, seed: int) -> str:
    """The name of a run, and of its folder."""
    return f"{configuration.id}-seed-{seed}"


def failure_file(run: Path) -> Path:
    """Where the reason for a run's failure is kept: beside its folder."""
    return run.with_name(f"{run.name}.failed.json")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into an OptionError that names it."""
    try:
        yield
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise OptionError(f"{file} is damaged or missing: {first_line(error)}") from error


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run left in its folder."""

    configuration: Configuration
    seed: int
    directory: RunDirectory

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: per split accuracy, loss, examples; sparsity, kept mass, time, memory."""
        return json.loads(self.directory.metrics.read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: options, notes, versions."""
        return json.loads(self.directory.config.read_text(encoding="utf-8"))

    @property
    def diverged(self) -> bool:
        """Whether the loss on a split is no finite number."""
        with readable(self.directory.metrics):
            losses = [self.metrics[split]["loss"] for split in SPLITS if split in self.metrics]
        return any(loss is None or not math.isfinite(loss) for loss in losses)

    def predictions(self, split: str) -> pd.DataFrame:
        """One row per example of the split, by index: label, prediction, logits."""
        return pd.read_parquet(self.directory.predictions(split)).set_index("index").sort_index()

    def history(self) -> pd.DataFrame:
        """The Trainer's log: epoch, loss, eval_loss, eval_accuracy …"""
        with readable(self.directory.history):
            return pd.read_csv(self.directory.history)

    def measurements(self) -> pd.DataFrame:
        """Achieved sparsity and kept mass of every layer and head."""
        with readable(self.directory.measurements):
            return pd.read_csv(self.directory.measurements)


@dataclass(frozen=True)
class Study:
    """What was planned (study.json), and what there is of it."""

    path: Path
    name: str
    command: list[str]
    options: dict[str, Any]
    configurations: tuple[Configuration, ...]
    seeds: tuple[int, ...]
    created: str
    versions: dict[str, str]
    published: dict[str, Any] | None = None

    @staticmethod
    def read(path: Path) -> "Study":
        """The study in the folder. Raises OptionError if there is none, or its record is damaged."""
        file = path / STUDY
        if not file.is_file():
            raise OptionError(f"{path} holds no study: expected {STUDY}, as `crisp sweep` writes it")
        with readable(file):
            data = json.loads(file.read_text(encoding="utf-8"))
            configurations = tuple(
                Configuration(**each | {"layers": tuple(each["layers"])})
                for each in data.pop("configurations")
            )
            return Study(path, configurations=configurations, seeds=tuple(data.pop("seeds")), **data)

    def record(self) -> dict[str, Any]:
        """What study.json holds."""
        data = {key: value for key, value in asdict(self).items() if key != "path"}
        return data | {"configurations": [asdict(each) for each in self.configurations]}

    def directory(self, configuration: Configuration, seed: int) -> RunDirectory:
        """The folder of a run, whether it is there or not."""
        return RunDirectory(self.path / RUNS / run_name(configuration, seed))

    def finished(self, configuration: Configuration) -> list[FinishedRun]:
        """The configuration's finished runs, by seed, without those that diverged."""
        return [run for run in self._complete(configuration) if not run.diverged]

    def diverged(self, configuration: Configuration) -> list[FinishedRun]:
        """The configuration's runs that ended with a loss that is no finite number, by seed."""
        return [run for run in self._complete(configuration) if run.diverged]

    def _complete(self, configuration: Configuration) -> Iterator[FinishedRun]:
        for seed in self.seeds:
            if (folder := self.directory(configuration, seed)).complete:
                yield FinishedRun(configuration, seed, folder)

    def failed(self) -> dict[tuple[str, int], str]:
        """The reasons of failed runs, by the configuration's id and seed."""
        return {
            (each.id, seed): _reason(file)
            for each in self.configurations
            for seed in self.seeds
            if not self.directory(each, seed).complete
            and (file := failure_file(self.directory(each, seed).path)).is_file()
        }

    def missing(self) -> list[tuple[Configuration, int]]:
        """Runs that are neither finished nor failed here: still to do, or done on another machine."""
        failed = self.failed()
        return [
            (each, seed)
            for each in self.configurations
            for seed in self.seeds
            if (each.id, seed) not in failed and not self.directory(each, seed).complete
        ]

    @property
    def dense(self) -> Configuration:
        """The baseline that every study has."""
        return next(each for each in self.configurations if each.is_dense)

    def control(self, configuration: Configuration) -> Configuration | None:
        """The random control that keeps as many keys as the configuration, if the study has one."""
        wanted = None if configuration.is_random else control_of(parse(configuration.method))
        return next((each for each in self.configurations if wanted and each.method == wanted.spec), None)


def control_of(method: Method) -> Method | None:
    """Random keys, as many as the method keeps of what its layout shows; None if it has no one sparsity."""
    if not method.sparsity:
        return None
    rule = RandomK(sparsity=method.sparsity, temperature=method.rule.temperature)
    return replace(method, rule=rule) if hasattr(method.rule, "sparsity") else Method(rule=rule)


def _reason(file: Path) -> str:
    with readable(file):
        return json.loads(file.read_text(encoding="utf-8"))["reason"]


def pairs(configurations: Sequence[Configuration], seeds: Sequence[int]) -> list[tuple[Configuration, int]]:
    """All runs, seed by seed, so that an unfinished study holds every configuration as often."""
    return [(configuration, seed) for seed in seeds for configuration in configurations]
