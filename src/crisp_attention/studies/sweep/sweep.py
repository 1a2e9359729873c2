"""`crisp.sweep`: many runs, from values to a study that is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from datasets import Dataset, DatasetDict
from rich.console import Console

from crisp_attention.errors import OptionError
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import AnyMethod
from crisp_attention.runs.finetune import as_data
from crisp_attention.runs.run_directory import hold
from crisp_attention.runs.spec import Data, Recipe
from crisp_attention.runs.terminal import quietly
from crisp_attention.runs.treatment import Treatment
from crisp_attention.studies.folder import RUNS, STUDY, StudyFolder, run_name
from crisp_attention.studies.plan import Plan, planned
from crisp_attention.studies.study import Study
from crisp_attention.studies.sweep.campaign import Campaign
from crisp_attention.studies.sweep.check import Checked, check, check_place
from crisp_attention.studies.sweep.child import Asked
from crisp_attention.studies.sweep.pool import Pool
from crisp_attention.studies.sweep.queue import Planned, Queue
from crisp_attention.studies.sweep.search import SEED, Search
from crisp_attention.studies.sweep.storage import Storage
from crisp_attention.studies.sweep.view import View

PLAN = "plan"
OPTIONS = "options"  # what version 0.1.0 kept in the storage
RECIPE = Recipe()


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where a study is kept and how its runs are shared: what may change when it is continued. Fields as in `sweep`."""

    output: Path
    workers: int = 1
    storage: str | None = None
    name: str | None = None
    keep_models: bool = False
    retry_failed: bool = False


def sweep(
    model: str | Path,
    data: str | Path | Dataset | Mapping[str, Dataset] | Data,
    methods: Sequence[AnyMethod | PerHead | Treatment],
    *,
    output: str | Path,
    seeds: int | Sequence[int] = 5,
    recipe: Recipe = RECIPE,
    recipes: Mapping[str, Recipe] | None = None,
    layers: Sequence[str | int] = (),
    attention: str = "self",
    phase: str = "always",
    schedule: str = "constant",
    ramp: tuple[float, float] | None = None,
    metric: str | None = None,
    workers: int = 1,
    storage: str | None = None,
    keep_models: bool = False,
    retry_failed: bool = False,
    verbose: bool = True,
) -> Study:
    """Fine-tune dense and sparse models with several seeds, and compare them.

    Called again, it continues: what is finished is kept. With more seeds or methods the study grows.

    Parameters
    ----------
    model, data
        As in `crisp.finetune`. A DatasetDict is saved in the study's folder.
    methods
        What `crisp.sparsify` takes, or treatments of other kinds. Dense always runs too.
    output
        Folder for the study: its runs, study.json and the report.
    seeds
        How many runs each configuration has, or their seeds; a comparison needs 3.
    recipe
        How all are trained.
    recipes
        Other recipes, by a method's name or spec, such as ``{"dense": crisp.Recipe(epochs=5)}``.
    layers, attention, phase
        As in `crisp.sparsify`, for all methods; no layers are all.
    schedule, ramp
        How sparsities rise: ``"constant"``, ``"linear"``, ``"cosine"`` or ``"cubic"``, and over which fractions of
        training.
    metric
        The main metric of the verdicts, such as ``"mcc"``. None for that of the task.
    workers
        Runs at a time; cores and GPUs are shared out among them.
    storage
        The URL of an Optuna storage from which several machines pull runs. None for a file in the folder.
    keep_models
        Whether to keep the models of runs started from now on; otherwise only measurements are kept.
    retry_failed
        Repeat the runs that failed before.
    verbose
        Whether progress is printed to standard error.

    Returns
    -------
    Study
        Its table, verdicts and report.

    Raises
    ------
    OptionError, DataError, CheckpointError
        Before anything runs, for what cannot work: also for a study in `output` that has other recipes, or runs that
        are not asked for any more.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> study = crisp.sweep(
    ...     "distilbert-base-uncased",
    ...     "stanfordnlp/sst2",
    ...     methods=[crisp.TopK(0.5), crisp.TopK(0.8), crisp.RandomK(0.8)],
    ...     output="runs/study",
    ... )  # doctest: +SKIP
    """
    plan = planned(
        model,
        as_data(data),
        methods,
        seeds,
        recipe=recipe,
        recipes=recipes,
        metric=metric,
        schedule=schedule,
        ramp=ramp,
        layers=tuple(map(str, layers)),
        attention=attention,
        phase=phase,
    )
    work = Work(
        output=Path(output),
        workers=workers,
        storage=storage,
        keep_models=keep_models,
        retry_failed=retry_failed,
    )
    specs = ", ".join(repr(each.spec) for each in plan.configurations if not each.is_dense)
    said = f"crisp.sweep({str(model)!r}, {plan.data.source!r}, methods=[{specs}], seeds={len(plan.seeds)}, …)"
    with quietly():
        folder = carry_out(plan, work, Console(stderr=True, quiet=not verbose), command=(said,))
    return Study(folder)


def carry_out(
    plan: Plan,
    work: Work,
    console: Console,
    *,
    command: Sequence[str],
    published: Mapping[str, Any] | None = None,
    search: Search | None = None,
) -> StudyFolder:
    """Run what the study still lacks; return it when all its runs have ended.

    command: what was typed. published: numbers that the report shows next to ours. search: how the configurations
    are chosen from those of the plan. Progress goes to `console`. Raises what `sweep` raises, and
    OptionError when the disk is full. Interrupted, it can be called again.
    """
    if work.workers < 1:
        raise OptionError(f"workers must be at least 1, got {work.workers}", "workers")
    check_place(work.output)
    held = plan.data.source if isinstance(plan.data.source, DatasetDict) else None
    data = work.output / "data"
    stored = plan if held is None else replace(plan, data=replace(plan.data, source=str(data)))
    if search is not None:  # not the seed on which configurations are chosen
        stored = replace(stored, seeds=tuple(seed + SEED + 1 for seed in plan.seeds))
    before = StudyFolder.read(work.output) if (work.output / STUDY).is_file() else None
    if before is not None:
        lines = stored.configurations if search is None else before.configurations
        replace(stored, configurations=lines).check_extends(
            before.plan, str(work.output), moved=held is not None
        )
    if held is not None and data.is_dir():
        hold(held, data)
    name = work.name or (before.name if before else work.output.resolve().name)
    pool = Pool(work.workers, work.output / "logs", tuple(command))
    if before is None or before.missing() or len(stored.runs()) > len(before.plan.runs()):
        pool.warm_up()
    checked = check(plan, work.output, partial(_say, console))
    open_queue = partial(_open, work, checked, before, held is not None)
    try:
        work.output.mkdir(parents=True, exist_ok=True)
        if held is not None:
            hold(held, data)
        if search is not None:
            found = replace(search, plan=replace(search.plan, data=stored.data))
            chosen = found.run(
                lambda kind: open_queue(f"{name}-search-{kind}", found.plan),
                pool,
                checked,
                work.output,
                console,
            )
            stored = replace(stored, configurations=chosen)
        queue = open_queue(name, stored)
        with queue.storage.locked():
            if (work.output / STUDY).is_file():
                study = StudyFolder.read(work.output).grow(stored, tuple(command), moved=held is not None)
            else:
                study = StudyFolder.begin(work.output, name, stored, tuple(command), published)
        queue.redo_lost()
        _run_all(study, queue, pool, checked, work, console)
    except OSError as error:
        raise OptionError(
            f"{error}; what is in {work.output} is intact: run the same command again to continue"
        ) from error
    return study


def _open(
    work: Work, checked: Checked, before: StudyFolder | None, moved: bool, name: str, plan: Plan
) -> Queue:
    """A queue in the storage. Raises OptionError if the study there is another one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = Storage(work.storage, work.output)
    with storage.locked():
        study = storage.study(name, higher_is_better=checked.metric.higher_is_better)
        if (known := study.user_attrs.get(PLAN)) is not None:
            plan.check_extends(Plan.from_dict(known), f"{storage}, {name},", moved=moved)
        elif OPTIONS in study.user_attrs and before is None:
            raise OptionError(
                f"the study {name} in {storage} was started with version 0.1.0 in another folder: continue it there, "
                f"or choose another name for this study",
                "study",
            )
        study.set_user_attr(PLAN, plan.to_dict())
    queue = Queue(storage, study)
    if work.retry_failed:
        queue.retry()
    return queue


def _run_all(
    study: StudyFolder, queue: Queue, pool: Pool, checked: Checked, work: Work, console: Console
) -> None:
    """Every configuration with every seed."""
    runs = {run_name(each, seed): (each, seed) for each, seed in study.plan.runs()}

    def start(trial: optuna.Trial) -> Asked:
        configuration, seed = runs[trial.user_attrs["run"]]
        folder = study.directory(configuration, seed).path
        return Asked(study.plan.run(configuration, seed), folder, work.keep_models, pool.command)

    known = [Planned(name, {"configuration": each.id, "seed": seed}) for name, (each, seed) in runs.items()]
    (study.path / RUNS).mkdir(exist_ok=True)
    rows = {each.label: [run_name(each, seed) for seed in study.seeds] for each in study.configurations}
    view = View(console, rows, checked.metric)
    with view:
        Campaign(queue, pool, view, start).work(known)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
