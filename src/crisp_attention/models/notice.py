"""The warning when a sparse checkpoint is loaded without Crisp and so dense. Imports nothing heavy."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from sysconfig import get_path
from types import FrameType

LIBRARY = re.compile(r"[/\\](crisp_attention|transformers|diffusers|huggingface_hub|peft|wrapt)[/\\]")
INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]|^<frozen ")
_restoring: ContextVar[bool] = ContextVar("crisp_restoring", default=False)


class SparseCheckpointLoadedDense(UserWarning):
    """A checkpoint holds Crisp settings that are not active, or `crisp.load` found none.

    Examples
    --------
    >>> import warnings
    >>> import crisp_attention as crisp
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", crisp.SparseCheckpointLoadedDense)  # a dense model is then an error
    """


@contextmanager
def restoring() -> Iterator[None]:
    """No warning inside the block: the settings are about to be applied."""
    token = _restoring.set(True)
    try:
        yield
    finally:
        _restoring.reset(token)


def is_restoring() -> bool:
    """Whether this is inside `restoring`."""
    return _restoring.get()


def notify(message: str) -> None:
    """Warn at the line that called a library, every time and not only the first."""
    file, line = _caller()
    warnings.warn_explicit(message, SparseCheckpointLoadedDense, file, line, registry={})


def _caller() -> tuple[str, int]:
    """The nearest line of no installed package; in an installed program, the nearest of none of the libraries here."""
    lines: list[tuple[str, int]] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    others = [each for each in lines if not LIBRARY.search(each[0])] or lines[-1:]
    return next((each for each in others if not _is_installed(each[0])), others[0])


def _is_installed(file: str) -> bool:
    # scripts of the environment only start a program
    folders = (get_path("stdlib"), get_path("scripts"))
    return bool(INSTALLED.search(file)) or any(Path(file).is_relative_to(each) for each in folders)
