"""Folders and files that Crisp writes: only into folders that are its own, and only whole files."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crisp_attention.errors import OptionError

PACKAGES = ("crisp-attention", "torch", "transformers", "datasets", "accelerate", "numpy")
NAMED = 5  # foreign files in a message


def check_folder(folder: Path, option: str = "output") -> None:
    """Raise OptionError, naming the option, if `folder` is a file, is inside one, or cannot be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OptionError(f"{option}: {there} is a file; expected a folder", option)
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"{option} {folder}: {there} is not writable; choose another folder", option)
    if there == folder.absolute():
        return
    try:
        with TemporaryDirectory(dir=there, prefix=".crisp-"):  # /proc looks writable and is not
            pass
    except OSError as error:
        raise OptionError(
            f"{option} {folder}: {there} is not writable ({error.strerror}); choose another folder", option
        ) from error


def check_ours(folder: Path, what: str, own: Callable[[str], object], option: str = "output") -> None:
    """Raise OptionError, as `check_folder` does, and if the folder holds anything but `what`, such as "a report".

    `own` says of a file's name whether it is one that we write there.
    """
    check_folder(folder, option)
    entries = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if foreign := [name for name in entries if not own(name)]:
        raise OptionError(
            f"{option} {folder} holds files that do not belong to {what} ({', '.join(foreign[:NAMED])}); "
            f"choose another folder",
            option,
        )


def check_replaced(folder: Path, option: str = "output") -> None:
    """Raise OptionError, naming the option, if `replacing` could not put another folder in the place of `folder`."""
    check_folder(folder, option)
    folder = folder.resolve()
    if folder.is_mount():
        raise OptionError(f"{option} {folder} is a mount point; choose a folder inside it", option)
    if folder.exists() and not os.access(folder.parent, os.W_OK | os.X_OK):
        raise OptionError(
            f"{option} {folder}: {folder.parent} is not writable; choose another folder", option
        )


@contextmanager
def replacing(output: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A new folder next to `output`, which takes its place at the end, and that of what `check` allows to be there.

    Raises OptionError as `check` does, or if the folder cannot be written; after any error all is as it was.
    """
    output = output.resolve()
    if Path.cwd().is_relative_to(output):
        raise OptionError(
            f"output {output} is the working directory, or holds it: name a folder in it", "output"
        )
    check(output)
    new, old = (output.with_name(f".{output.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if output.exists():
            output.rename(old)
        new.rename(output)
    except OSError as error:
        raise OptionError(f"output {output}: {error.strerror or error}", "output") from error
    finally:
        if old.exists() and not output.exists():
            old.rename(output)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def finite(data: Any) -> Any:
    """The same with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file in one step: the file is complete, or not there at all. NaN and infinities become null."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(finite(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def plain(values: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON returns them."""
    return json.loads(json.dumps(asdict(values), default=str))


def versions() -> dict[str, str]:
    """The installed versions of the packages that determine a run's numbers."""
    return {package: version(package) for package in PACKAGES}
