"""The folder of a report: whole, or as it was."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crisp_attention.errors import OptionError
from crisp_attention.files import check_ours

OWN = {"report.html", "summary.md", "table.csv", "runs.csv", "figures"}


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, which takes its place, and that of an earlier report, at the end.

    Raises OptionError if what is there is no report, or the folder cannot be written.
    """
    output = output.resolve()
    check(output)
    new, old = (output.with_name(f".{output.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if output.exists():
            output.rename(old)
        new.rename(output)
    except OSError as error:
        raise OptionError(f"--output {output}: {error.strerror or error}") from error
    finally:
        if old.exists() and not output.exists():
            old.rename(output)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def check(output: Path) -> None:
    """Raises OptionError if `output` is a file, or a folder with other things in it than a report."""
    check_ours(output, "a report", OWN.__contains__)
