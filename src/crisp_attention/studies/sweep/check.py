"""What can be known to be impossible before a study begins."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import set_seed

from crisp_attention.errors import OptionError
from crisp_attention.files import check_ours, plain
from crisp_attention.models.apply import densify
from crisp_attention.models.sparse_model import SparseModel
from crisp_attention.runs.arguments import training_arguments
from crisp_attention.runs.data import load_task
from crisp_attention.runs.prepare import build, make_sparse
from crisp_attention.runs.rehearsal import rehearse
from crisp_attention.runs.sources import load_source
from crisp_attention.runs.sources.encoding import encoded
from crisp_attention.runs.spec import RunSpec
from crisp_attention.studies.options import SweepOptions
from crisp_attention.studies.statistics import SEEDS_NEEDED
from crisp_attention.studies.study import STUDY, Configuration
from crisp_attention.studies.sweep.plan import run_options
from crisp_attention.studies.sweep.storage import DATABASE

NEW = {
    "runs",
    "logs",
    "search",
    "search-dense.csv",
    "study.db.lock",
}  # what may be there before a study is recorded


def check(options: SweepOptions, configurations: Sequence[Configuration], console: Console) -> int:
    """Read the data and the model, make it sparse in every way that is planned, try how it would be trained.

    Returns the number of the model's attention layers. Raises OptionError, DataError or CheckpointError
    for what could not run. Notes go to `console`.
    """
    for flag, value in (("--seeds", options.seeds), ("--workers", options.workers)):
        if value < 1:
            raise OptionError(f"{flag} must be at least 1, got {value}")
    if options.trials is not None and not options.search:
        raise OptionError("--trials has no meaning without --search")
    _check_folder(options.output)
    runs = [
        RunSpec.from_dict(plain(run_options(options, each, 0, options.output))) for each in configurations
    ]
    arguments = [training_arguments(each, options.output / "checkpoints") for each in runs]
    task = load_task(runs[0].data)
    if options.search and "test" not in task.splits:
        raise OptionError(
            f"--search chooses on validation, and needs a labelled test split to judge what it chose; "
            f"{options.dataset} has none: give a folder with train, validation and test files"
        )
    set_seed(0)
    source = load_source(options.model, task, options.max_length)
    task = encoded(source, task)
    trainer, _ = build(source, task, arguments[0])
    layers = 0
    for each in runs:
        make_sparse(source.model, each)
        rehearse(trainer, source, task)
        if (sparse := SparseModel.find(source.model)) is not None:
            layers = max(layers, len(sparse.layers))
            densify(source.model)
    few = f"with {options.seeds} seeds nothing can be compared: a comparison needs {SEEDS_NEEDED}, better 5"
    for note in (*source.notes, *task.notes, *([few] if options.seeds < SEEDS_NEEDED else [])):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return layers


def _check_folder(path: Path) -> None:
    kept = path.is_dir() and any((path / name).is_file() for name in (STUDY, DATABASE))
    check_ours(path, "a study", lambda name: kept or name in NEW)
