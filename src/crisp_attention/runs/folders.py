"""Folders that a command is told to write into."""

import os
from pathlib import Path

from crisp_attention.runs.options import OptionError


def check_folder(flag: str, folder: Path) -> None:
    """Raise OptionError, naming the flag, if `folder` is a file, would lie in one, or cannot be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OptionError(f"{flag}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"{flag} {folder}: nothing can be written in {there}; choose another folder")
