"""The folder of one run: never two runs in one, never a half-written file under its final name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from crisp_attention.errors import OptionError
from crisp_attention.files import check_folder, check_ours, plain, versions, write_json
from crisp_attention.runs.options import FinetuneOptions
from crisp_attention.runs.records import changes

# what may differ between a run and its continuation
FREE = {"output", "overwrite", "resume", "discard_model", "report_to"}
OWN = re.compile(
    r"(config|metrics)\.(json|partial)|(measurements|history)\.csv|figures|model|checkpoints|tensorboard"
    r"|predictions-(validation|test)\.parquet"
)


class RunDirectory:
    """Names the files of a run and guards the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.json"
        self.measurements = path / "measurements.csv"
        self.history = path / "history.csv"
        self.figures = path / "figures"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    @property
    def complete(self) -> bool:
        """Whether the folder holds a finished run: the metrics are written last."""
        return self.metrics.is_file()

    def predictions(self, split: str) -> Path:
        """The parquet file with one row per example of the split."""
        return self.path / f"predictions-{split}.parquet"

    def check(self, options: FinetuneOptions, processes: int = 1) -> None:
        """Raises OptionError if a run of so many processes cannot have this folder. Changes nothing."""
        if options.overwrite and options.resume:
            raise OptionError("--overwrite and --resume contradict each other; give one")
        check_folder(self.path)
        if options.resume:
            self._check_same(options, processes)
        elif self._entries():
            is_run = "options" in self._read_config()
            check_ours(self.path, "a Crisp run", lambda name: is_run and OWN.fullmatch(name))
            if not options.overwrite:
                state = "a finished" if self.complete else "an unfinished"
                ways = "--overwrite replaces it"
                ways = ways if self.complete else f"--resume continues it, {ways}"
                raise OptionError(f"--output {self.path} already holds {state} run; {ways}")

    def claim(self, options: FinetuneOptions, resolved: dict[str, Any]) -> None:
        """Remove the run to be replaced, if any, and record this one: its options, what they became, versions.

        Raises OptionError as `check` does.
        """
        self.check(options, resolved.get("processes", 1))
        if options.resume and self._read_config().get("method") != json.loads(json.dumps(resolved["method"])):
            raise OptionError(
                f"--resume: the methods in --budgets {options.budgets} are not those with which "
                f"the run in {self.path} was started"
            )
        for name in [] if options.resume else self._entries():
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, {"options": plain(options), **resolved, "versions": versions()})
        self.figures.mkdir(exist_ok=True)

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

    def _check_same(self, options: FinetuneOptions, processes: int) -> None:
        config = self._read_config()
        before = config.get("options")
        if before is None:
            raise OptionError(f"--resume: there is no run in {self.path}")
        now = {name: value for name, value in plain(options).items() if name not in FREE}
        if changed := changes(before, now):
            raise OptionError(f"--resume: the run in {self.path} was started with other options: {changed}")
        if (then := config.get("processes", 1)) != processes:
            raise OptionError(
                f"--resume: the run in {self.path} was started with {then} "
                f"process{'' if then == 1 else 'es'}, now there {'is' if processes == 1 else 'are'} {processes}"
            )
