"""The folder of one run: one run per folder, no half-written files, and the checkpoint to continue from."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import transformers
from datasets import DatasetDict, load_from_disk
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from crisp_attention.errors import CheckpointError, OptionError, first_line
from crisp_attention.files import check_folder, check_ours, versions, write_json
from crisp_attention.runs.flat import spec_of
from crisp_attention.runs.spec import RunSpec
from crisp_attention.runs.task.target import Target

NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
STATE = "trainer_state.json"
LAYERS, COMPRESSED = "layers.csv", "compressed"  # of a pruned model
ARCHIVES = ("optimizer.pt", "scheduler.pt")
RESUMES_FROM = "5.7"  # earlier versions leave out LayerNorm weights that were renamed since BERT
OWN = re.compile(
    r"(config|metrics)\.(json|partial)|(measurements|attention|history|layers)\.csv|figures|model|compressed|checkpoints"
    r"|tensorboard|data"
    r"|predictions-(validation|test)\.parquet"
)


def check_resuming() -> None:
    """Raises OptionError if the installed transformers restores checkpoints wrongly."""
    installed = transformers.__version__
    if Version(installed).release < Version(RESUMES_FROM).release:
        raise OptionError(
            f"resume needs transformers {RESUMES_FROM} or later, which restores all weights of a checkpoint; "
            f"installed is {installed}",
            "resume",
        )


def newest_checkpoint(
    folder: Path, processes: int = 1, needed: Sequence[str] = ()
) -> tuple[Path | None, tuple[str, ...]]:
    """The newest complete checkpoint in `folder`, and a note for each damaged one that was skipped.

    `needed` are files that a checkpoint must have besides those of every run. None if there is no checkpoint at all:
    the run starts from the beginning. Raises CheckpointError if there are checkpoints and all are damaged.
    """
    named = [(int(match[1]), path) for path in folder.glob("*") if (match := NAME.fullmatch(path.name))]
    states = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
    archives = (*ARCHIVES, *states)
    notes: list[str] = []
    for _, checkpoint in sorted(named, reverse=True):
        if (damage := _damage(checkpoint, archives, needed)) is None:
            return checkpoint, tuple(notes)
        notes.append(f"{checkpoint.name} is damaged and was skipped: {damage}")
    if named:
        raise CheckpointError(
            f"no usable checkpoint in {folder}; overwrite=True starts again: {'; '.join(notes)}"
        )
    return None, ()


def _damage(checkpoint: Path, archives: tuple[str, ...], needed: Sequence[str]) -> str | None:
    weights = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    for name in (STATE, CONFIG_NAME, *archives, *needed, *(weights or ["model.safetensors"])):
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        try:
            if name in (STATE, CONFIG_NAME):
                json.loads(file.read_text(encoding="utf-8"))
            elif name in archives:
                ZipFile(file).close()
            else:
                with safe_open(file, framework="pt"):
                    pass
        except (OSError, ValueError, BadZipFile, SafetensorError) as error:
            return f"{name} is truncated or damaged ({error})"
    return None


class RunDirectory:
    """Names the files of a run and guards the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.json"
        self.measurements = path / "measurements.csv"
        self.attention = path / "attention.csv"  # of a run with a treatment of something else
        self.history = path / "history.csv"
        self.figures = path / "figures"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.data = path / "data"  # of a run whose data were in memory

    @property
    def complete(self) -> bool:
        """Whether the folder holds a finished run: the metrics are written last."""
        return self.metrics.is_file()

    def predictions(self, split: str) -> Path:
        """The parquet file with one row per example of the split."""
        return self.path / f"predictions-{split}.parquet"

    def read_metrics(self) -> dict[str, Any]:
        """What metrics.json holds."""
        return json.loads(self.metrics.read_text(encoding="utf-8"))

    def spec(self) -> RunSpec:
        """The run that config.json records. Raises OptionError if there is none, or it cannot be read."""
        config = self._read_config()
        if "options" not in config:
            raise OptionError(f"there is no run in {self.path}")
        options = config["options"]
        if "dataset" in options:  # before RunSpec: flat options, and what they became
            options = options | {"method": config.get("method", options.get("method"))}
        try:
            return spec_of(options) if "dataset" in options else RunSpec.from_dict(options)
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(f"{self.config} is damaged ({first_line(error)})") from error

    def target(self) -> Target:
        """What the run predicts, as config.json records it."""
        return Target.from_dict(self._read_config()["task"])

    def check(
        self,
        spec: RunSpec,
        *,
        resume: bool = False,
        overwrite: bool = False,
        processes: int = 1,
        held: DatasetDict | None = None,
    ) -> None:
        """Raises OptionError if a run of `processes` processes, with data `held` in memory, cannot have this folder.

        Changes nothing.
        """
        if overwrite and resume:
            raise OptionError("resume cannot be combined with overwrite=True", "resume")
        check_folder(self.path)
        if resume:
            self._check_same(spec, processes, held)
        elif self._entries():
            is_run = "options" in self._read_config()
            check_ours(self.path, "a Crisp run", lambda name: is_run and OWN.fullmatch(name))
            if not overwrite:
                state, ways = "a finished", "overwrite=True replaces it"
                if not self.complete:
                    state, ways = "an unfinished", f"resume=True continues it, {ways}"
                raise OptionError(f"output {self.path} already holds {state} run; {ways}", "output")

    def claim(
        self,
        spec: RunSpec,
        resolved: dict[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        held: DatasetDict | None = None,
    ) -> None:
        """Record the run, after removing the one to be replaced: its options, what was resolved, versions, its data.

        Raises OptionError as `check` does.
        """
        processes = resolved.get("processes", 1)
        self.check(spec, resume=resume, overwrite=overwrite, processes=processes, held=held)
        for name in [] if resume else self._entries():
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, {"options": spec.to_dict(), **resolved, "versions": versions()})
        self.figures.mkdir(exist_ok=True)
        if held is not None:
            hold(held, self.data)

    def _entries(self) -> list[str]:
        return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []

    def _read_config(self) -> dict[str, Any]:
        if not self.config.is_file():
            return {}
        try:
            found = json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OptionError(
                f"{self.config} is damaged ({error}); choose another folder or delete this one"
            ) from error
        return found if isinstance(found, dict) else {}

    def _check_same(self, spec: RunSpec, processes: int, held: DatasetDict | None) -> None:
        config = self._read_config()
        if "options" not in config:
            raise OptionError(f"resume: there is no run in {self.path}", "resume")
        before = self.spec()
        if held is not None and self.data.is_dir():  # the contents count, not how the folder is called now
            if not same_data(held, self.data):
                raise OptionError(f"resume: the run in {self.path} was started with other data", "resume")
            spec = replace(spec, data=replace(spec.data, source=before.data.source))
        if changed := spec.differences(before):
            raise OptionError(
                f"resume: the run in {self.path} was started with other options: {changed}", "resume"
            )
        if (then := config.get("processes", 1)) != processes:
            raise OptionError(
                f"resume: the run in {self.path} was started with {then} "
                f"process{'' if then == 1 else 'es'}, but now there {'is' if processes == 1 else 'are'} {processes}",
                "resume",
            )


def hold(data: DatasetDict, folder: Path) -> None:
    """Keep data that were in memory, unless they are kept already. Raises OptionError if other data are."""
    if not folder.is_dir():
        data.save_to_disk(str(folder))
    elif not same_data(data, folder):
        raise OptionError(f"data differ from those in {folder}, with which this was started", "data")


def same_data(data: DatasetDict, folder: Path) -> bool:
    """Whether the folder holds the same splits with the same rows."""
    kept = load_from_disk(str(folder))
    return set(kept) == set(data) and all(
        data[name].with_format("arrow")[:].equals(rows.with_format("arrow")[:]) for name, rows in kept.items()
    )
