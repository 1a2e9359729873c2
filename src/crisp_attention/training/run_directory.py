"""The folder of one run: never two runs in one, never a half-written file under its final name."""

import json
import os
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crisp_attention.training.options import FinetuneOptions, OptionError

PACKAGES = ("crisp-attention", "torch", "transformers", "datasets", "accelerate", "numpy")
# what may differ between a run and its continuation
FREE = {"output", "overwrite", "resume"}


class RunDirectory:
    """Names the files of a run and guards the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.json"
        self.measurements = path / "measurements.csv"
        self.figures = path / "figures"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions-{split}.parquet"

    def claim(self, options: FinetuneOptions) -> None:
        """Make the folder ready for this run. Raises OptionError rather than touch another run."""
        if options.overwrite and options.resume:
            raise OptionError("--overwrite and --resume contradict each other; give one")
        entries = sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        if self.path.exists() and not self.path.is_dir():
            raise OptionError(f"--output {self.path} is a file; expected a folder")
        if options.resume:
            self._check_same(options)
        elif entries and not self.config.is_file():
            raise OptionError(
                f"--output {self.path} holds files that are not a Crisp run ({', '.join(entries[:5])}); "
                f"choose another folder"
            )
        elif entries and not options.overwrite:
            raise OptionError(
                f"--output {self.path} already holds a run; --resume continues it, --overwrite replaces it"
            )
        elif entries:
            shutil.rmtree(self.path)
        self.figures.mkdir(parents=True, exist_ok=True)

    def write_config(self, options: FinetuneOptions, resolved: dict[str, Any]) -> None:
        """Record what the run was asked for, what that became, and the versions."""
        versions = {package: version(package) for package in PACKAGES}
        self.write_json(self.config, {"options": plain(options), **resolved, "versions": versions})

    def write_json(self, path: Path, data: Any) -> None:
        """Write a JSON file in one step: it is there complete, or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def _check_same(self, options: FinetuneOptions) -> None:
        if not self.config.is_file():
            raise OptionError(f"--resume: there is no run in {self.path} (no config.json)")
        try:
            before = json.loads(self.config.read_text(encoding="utf-8"))["options"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"--resume: {self.config} is damaged ({error}); --overwrite starts anew"
            ) from error
        now = json.loads(json.dumps(plain(options)))
        changed = [name for name in now if name not in FREE and now[name] != before.get(name)]
        if changed:
            listing = "; ".join(
                f"--{name.replace('_', '-')} was {before.get(name)!r}, is {now[name]!r}" for name in changed
            )
            raise OptionError(f"--resume: the run in {self.path} was started with other options: {listing}")


def plain(options: FinetuneOptions) -> dict[str, Any]:
    """The options as values that JSON can hold."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
