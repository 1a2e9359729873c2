"""A study as it lies in its folder: which runs there should be, and what each of them measured.

The folder is the source of truth for all results; Optuna's storage only says which worker has which run.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from crisp_attention.errors import OptionError, first_line
from crisp_attention.files import versions, write_json
from crisp_attention.runs.run_directory import RunDirectory
from crisp_attention.studies.plan import Configuration, Plan

STUDY = "study.json"
RUNS = "runs"
SPLITS = ("train", "validation", "test")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns errors in reading a file into an OptionError that names it."""
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
        """metrics.json: per split its scores, loss, examples; sparsity, kept mass, time, memory."""
        with readable(self.directory.metrics):
            return self.directory.read_metrics()

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json: options, notes, versions."""
        with readable(self.directory.config):
            return json.loads(self.directory.config.read_text(encoding="utf-8"))

    @property
    def diverged(self) -> bool:
        """Whether the loss on a split is not finite."""
        with readable(self.directory.metrics):
            losses = [self.metrics[split]["loss"] for split in SPLITS if split in self.metrics]
        return any(loss is None or not math.isfinite(loss) for loss in losses)

    def predictions(self, split: str) -> pd.DataFrame:
        """One row per example of the split, by index: label, prediction, and for classes the logits."""
        return pd.read_parquet(self.directory.predictions(split)).set_index("index").sort_index()

    def history(self) -> pd.DataFrame:
        """The Trainer's log: epoch, loss, eval_loss, eval_accuracy …"""
        with readable(self.directory.history):
            return pd.read_csv(self.directory.history)

    def measurements(self) -> pd.DataFrame | None:
        """Achieved sparsity and kept mass of every layer and head; None where nothing was measured."""
        if not self.directory.measurements.is_file():
            return None
        with readable(self.directory.measurements):
            return pd.read_csv(self.directory.measurements)


@dataclass(frozen=True)
class Addition:
    """What was added to a study after it had begun, when and by which command."""

    date: str
    command: tuple[str, ...]
    configurations: tuple[str, ...]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        seeds = [f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"] if self.seeds else []
        return f"added {self.date.split('T')[0]}: {'; '.join([*self.configurations, *seeds])}"


@dataclass(frozen=True)
class StudyFolder:
    """What was planned (study.json), and the runs that exist.

    additions: what the study has grown by, in order.
    published: numbers of a paper that the report shows next to its own.
    """

    path: Path
    name: str
    plan: Plan
    command: tuple[str, ...]
    created: str
    versions: Mapping[str, str]
    additions: tuple[Addition, ...] = ()
    published: Mapping[str, Any] | None = None

    @staticmethod
    def read(path: Path) -> "StudyFolder":
        """The study in the folder. Raises OptionError if there is none, or its record is damaged."""
        file = path / STUDY
        if not file.is_file():
            raise OptionError(f"{path} holds no study: expected {STUDY}, as `crisp sweep` writes it")
        with readable(file):
            data = json.loads(file.read_text(encoding="utf-8"))
            return StudyFolder(
                path,
                name=data["name"],
                plan=Plan.from_dict(data if "options" in data else data["plan"]),
                command=tuple(data["command"]),
                created=data["created"],
                versions=data["versions"],
                additions=tuple(
                    Addition(
                        each["date"],
                        tuple(each["command"]),
                        tuple(each["configurations"]),
                        tuple(each["seeds"]),
                    )
                    for each in data.get("additions", ())
                ),
                published=data.get("published"),
            )

    @staticmethod
    def begin(
        path: Path, name: str, plan: Plan, command: tuple[str, ...], published: Mapping[str, Any] | None
    ) -> "StudyFolder":
        """A new study, written into the folder."""
        study = StudyFolder(path, name, plan, command, _now(), versions(), published=published)
        study.write()
        return study

    def grow(self, plan: Plan, command: tuple[str, ...], *, moved: bool = False) -> "StudyFolder":
        """The study with the plan's additions, written into the folder with the date.

        Raises OptionError as `Plan.check_extends` does.
        """
        plan.check_extends(self.plan, str(self.path), moved=moved)
        known = {each.id for each in self.plan.configurations}
        more = tuple(each.label for each in plan.configurations if each.id not in known)
        seeds = tuple(seed for seed in plan.seeds if seed not in self.plan.seeds)
        if not more and not seeds:
            return replace(self, plan=plan)
        added = Addition(_now(), command, more, seeds)
        grown = replace(self, plan=plan, additions=(*self.additions, added))
        grown.write()
        return grown

    def write(self) -> None:
        """Write study.json."""
        data = asdict(replace(self, plan=None))  # type: ignore[arg-type]
        del data["path"]
        write_json(self.path / STUDY, data | {"plan": self.plan.to_dict()})

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        return self.plan.configurations

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.plan.seeds

    @property
    def dense(self) -> Configuration:
        """The baseline that every study has."""
        return self.plan.dense

    def control(self, configuration: Configuration) -> Configuration | None:
        """The random control that drops as much as the configuration, if the study has one."""
        return self.plan.control(configuration)

    def directory(self, configuration: Configuration, seed: int) -> RunDirectory:
        """The folder of a run, whether it is there or not."""
        return RunDirectory(self.path / RUNS / run_name(configuration, seed))

    def finished(self, configuration: Configuration) -> list[FinishedRun]:
        """The configuration's finished runs, by seed, without those that diverged."""
        return [run for run in self.ended(configuration) if not run.diverged]

    def ended(self, configuration: Configuration) -> list[FinishedRun]:
        """The configuration's runs that ended, diverged or not, by seed."""
        folders = {seed: self.directory(configuration, seed) for seed in self.seeds}
        return [
            FinishedRun(configuration, seed, folder) for seed, folder in folders.items() if folder.complete
        ]

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


def run_name(configuration: Configuration, seed: int) -> str:
    """The name of a run, and of its folder."""
    return f"{configuration.id}-seed-{seed}"


def failure_file(run: Path) -> Path:
    """Where the reason for a run's failure is kept: next to its folder."""
    return run.with_name(f"{run.name}.failed.json")


def _reason(file: Path) -> str:
    with readable(file):
        return json.loads(file.read_text(encoding="utf-8"))["reason"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
