"""From the options of `crisp sweep` to a finished study."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import optuna
from rich.console import Console

from crisp_attention.errors import OptionError
from crisp_attention.files import plain, versions, write_json
from crisp_attention.runs.options import FinetuneOptions
from crisp_attention.runs.options import words as typed
from crisp_attention.studies.options import ReportOptions, StudyOptions, SweepOptions
from crisp_attention.studies.report import run_report
from crisp_attention.studies.study import RUNS, STUDY, Configuration, Study, pairs, run_name
from crisp_attention.studies.sweep.campaign import Campaign
from crisp_attention.studies.sweep.check import check
from crisp_attention.studies.sweep.plan import grid, run_options, words
from crisp_attention.studies.sweep.pool import Pool
from crisp_attention.studies.sweep.queue import Planned, Queue
from crisp_attention.studies.sweep.search import SEED, Search
from crisp_attention.studies.sweep.storage import Storage, without_password
from crisp_attention.studies.sweep.view import View

OPTIONS = "options"
AnyStudyOptions = TypeVar("AnyStudyOptions", bound=StudyOptions)
FREE = {each.name for each in fields(StudyOptions)} | {"report_to"}


def run_sweep(
    options: SweepOptions,
    console: Console,
    command: Sequence[str] | None = None,
    published: Mapping[str, Any] | None = None,
) -> Study:
    """Run the study, write its report and print the verdicts. Takes and raises what `sweep` does."""
    study = sweep(options, console, command, published)
    with Storage(options.storage, options.output).locked():  # the workers of a study end together
        run_report(ReportOptions(studies=(study.path,)), console)
    return study


def sweep(
    options: SweepOptions,
    console: Console,
    command: Sequence[str] | None = None,
    published: Mapping[str, Any] | None = None,
) -> Study:
    """Run what the study still lacks; return it when all its runs have ended.

    command: what was typed, if it was not `crisp sweep`.
    published: numbers that the report shows beside. Progress goes to `console`.
    Raises OptionError, DataError or CheckpointError for what cannot work, before anything runs, and
    OptionError when the disk is full. Interrupted, it can be called again.
    """
    configurations = grid(options)
    layers = check(options, configurations, console)
    seeds = tuple(range(options.seeds))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        if options.search:
            search = Search(options, layers)
            configurations = search.run(
                lambda kind: _open(options, f"{_name(options)}-search-{kind}"), console
            )
            seeds = tuple(seed + SEED + 1 for seed in seeds)  # not the seed on which they were chosen
        queue = _open(options, _name(options))
        with queue.storage.locked():
            study = _recorded(options, configurations, seeds, command or _command(options), published)
        queue.redo_lost()
        run_grid(study, options, queue, console)
    except OSError as error:
        raise OptionError(
            f"{error}; what is in {options.output} is intact: run the same command again"
        ) from error
    return study


def _open(options: SweepOptions, name: str) -> Queue:
    """A queue in the storage. Raises OptionError if the study there, or in the folder, has other options."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = Storage(options.storage, options.output)
    fixed = _fixed(plain(options))
    with storage.locked():
        study = storage.study(name)
        for where, before in (
            (str(storage), study.user_attrs.get(OPTIONS)),
            (str(options.output), _in_folder(options).get(OPTIONS)),
        ):
            if before is not None and (changed := changes(_fixed(before), fixed)):
                raise OptionError(
                    f"the study {name} in {where} was started with other options: {changed}; "
                    f"choose another --output, and another --study in a storage that is shared"
                )
        study.set_user_attr(OPTIONS, fixed)
    queue = Queue(storage, study)
    if options.retry_failed:
        queue.retry()
    return queue


def _fixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change, however it was typed."""
    fixed = {key: value for key, value in options.items() if key not in FREE}
    numbers = [float(word) for word in words(map(str, fixed["sparsity"]))]
    return fixed | {"method": words(fixed["method"]), "sparsity": numbers}


def _in_folder(options: SweepOptions) -> dict[str, Any]:
    return Study.read(options.output).record() if (options.output / STUDY).is_file() else {}


def _name(options: SweepOptions) -> str:
    return options.study or _in_folder(options).get("name") or options.output.resolve().name


def _recorded(
    options: SweepOptions,
    configurations: Sequence[Configuration],
    seeds: tuple[int, ...],
    command: Sequence[str],
    published: Mapping[str, Any] | None,
) -> Study:
    """The study, its record written to the folder; when it is continued, the first record stays."""
    if not (options.output / STUDY).is_file():
        study = Study(
            path=options.output,
            name=_name(options),
            command=list(command),
            options=plain(options) | {"storage": None},
            configurations=tuple(configurations),
            seeds=seeds,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            published=dict(published) if published else None,
        )
        write_json(options.output / STUDY, study.record())
    return Study.read(options.output)


def _command(options: SweepOptions) -> list[str]:
    """The command, without the password that its storage may have."""
    return ["crisp", "sweep", *typed(without_secrets(options))]


def without_secrets(options: AnyStudyOptions) -> AnyStudyOptions:
    """The options as they may be written down."""
    return replace(options, storage=without_password(options.storage)) if options.storage else options


def run_grid(study: Study, options: SweepOptions, queue: Queue, console: Console) -> None:
    """Every configuration with every seed."""
    runs = {run_name(each, seed): (each, seed) for each, seed in pairs(study.configurations, study.seeds)}
    ids = [each.id for each in study.configurations]

    def start(trial: optuna.Trial) -> FinetuneOptions:
        configuration, seed = runs[trial.user_attrs["run"]]
        trial.suggest_categorical("configuration", ids)
        trial.suggest_categorical("seed", study.seeds)
        return run_options(options, configuration, seed, study.directory(configuration, seed).path)

    planned = [Planned(name, {"configuration": each.id, "seed": seed}) for name, (each, seed) in runs.items()]
    (study.path / RUNS).mkdir(exist_ok=True)
    rows = {each.label: [run_name(each, seed) for seed in study.seeds] for each in study.configurations}
    view = View(console, rows)
    with view:
        Campaign(queue, Pool(options.workers, study.path / "logs"), view, start).work(planned)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The options that are not what they were, as a person typed them; empty if there are none."""
    return "; ".join(
        f"--{name.replace('_', '-')} was {_shown(before.get(name))}, is {_shown(now[name])}"
        for name in now
        if now[name] != before.get(name)
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    return "not given" if value is None else str(value)
