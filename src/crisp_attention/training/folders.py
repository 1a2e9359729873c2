"""Folders that a command is told to write into."""

from pathlib import Path

from crisp_attention.training.options import OptionError


def check_folder(flag: str, folder: Path) -> None:
    """Raise OptionError, naming the flag, if `folder` is a file or would lie in one."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise OptionError(f"{flag}: {there} is a file; expected a folder")
