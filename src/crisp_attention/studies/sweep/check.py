"""Checks of a study before it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel, set_seed

from crisp_attention.errors import OptionError
from crisp_attention.files import check_ours
from crisp_attention.models.apply import densify
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.data import load_task
from crisp_attention.runs.prepare import build, make_sparse
from crisp_attention.runs.rehearsal import DROPS_NOTHING, rehearse
from crisp_attention.runs.sources import encoded, load_source
from crisp_attention.runs.task import Metric
from crisp_attention.studies.folder import RUNS, STUDY
from crisp_attention.studies.plan import Plan
from crisp_attention.studies.statistics import SEEDS_NEEDED
from crisp_attention.studies.sweep.storage import DATABASE

# what may be there before a study is recorded
NEW = {RUNS, "data", "logs", "search", "search-dense.csv", "study.db.lock"}


class Checked(NamedTuple):
    """How runs are judged, and how many attention layers the model has."""

    metric: Metric
    layers: int


def check(plan: Plan, output: Path, say: Callable[[str], None]) -> Checked:
    """Read the data and the model, apply every planned treatment, and rehearse the training.

    Notes go to `say`. Raises OptionError, DataError or CheckpointError for what cannot run.
    """
    runs = [plan.run(each, plan.seeds[0]) for each in plan.configurations]
    arguments = [training_arguments(each, output / "checkpoints") for each in runs]
    task = load_task(plan.data, plan.seeds[0])
    metric = task.target.metric(plan.metric)
    if plan.search is not None and "test" not in task.splits:
        raise OptionError(
            f"search chooses on validation, and needs a labelled test split to judge what it chose; "
            f"{plan.data.source} has none: give a folder with train, validation and test files",
            "search",
        )
    set_seed(0)
    source = load_source(plan.model, task, plan.configurations[0].recipe.max_length)
    encoded_task = encoded(source, task)
    trainer, _ = build(source, encoded_task, arguments[0])
    layers = 0
    for configuration, each, own in zip(plan.configurations, runs, arguments, strict=True):
        treated = source
        if each.treatment is not None:  # which cannot be undone
            treated = load_source(plan.model, task, each.recipe.max_length)
            trainer, _ = build(treated, encoded_task, arguments[0])
            each.treatment.callbacks(treated, encoded_task, own)
        make_sparse(treated.model, each)
        if rehearse(trainer, treated, encoded_task).drops_nothing:
            say(f"{configuration.treatment.spec}: {DROPS_NOTHING}")
        layers = max(layers, _made_dense(treated.model))
    for note in (*source.notes, *task.notes):
        say(note)
    if len(plan.seeds) < SEEDS_NEEDED:
        say(
            f"with {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''} nothing can be compared: at least "
            f"{SEEDS_NEEDED} are needed, better 5"
        )
    return Checked(metric, layers)


def check_place(output: Path) -> None:
    """Raise OptionError if a study cannot be in the folder: it holds other things, or cannot be written."""
    kept = output.is_dir() and any((output / name).is_file() for name in (STUDY, DATABASE))
    check_ours(output, "a study", lambda name: kept or name in NEW)


def _made_dense(model: PreTrainedModel) -> int:
    if (sparse := SparseModel.find(model)) is None:
        return 0
    layers = len(sparse.layers)
    densify(model)
    return layers
