"""Errors that Crisp raises, shortage of disk or memory, and how messages are composed. Imports nothing heavy."""

import difflib
import errno
from collections.abc import Iterable
from enum import Enum

SHOWN = 20


class CrispError(ValueError):
    """A request that cannot be carried out; the message says what was expected and what was found."""


class OptionError(CrispError):
    """A value that cannot be used, alone or together with other values or existing files.

    Parameters
    ----------
    message
        What was expected and what was found. It names values as Python does: ``epochs must be positive``,
        ``overwrite=True replaces it``.
    option
        The name of the value at fault, where there is one. The command line shows its flag instead.

    Examples
    --------
    >>> OptionError("epochs must be positive, got 0", option="epochs").option
    'epochs'
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option

    def __reduce__(self) -> tuple[type["OptionError"], tuple[str, str | None]]:
        return type(self), (str(self), self.option)  # between the processes of a run


class DataError(CrispError):
    """The data set cannot be used; the message says what was expected and what was found."""


class CheckpointError(CrispError):
    """A folder or file that should hold a model cannot be read as one.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> try:
    ...     crisp.load("/no/such/folder")
    ... except crisp.CheckpointError as error:
    ...     print(error)
    no such folder: /no/such/folder
    """


def listed(values: Iterable[object]) -> str:
    """The values separated by commas: the first 20 and how many more there are, "none" when empty."""
    texts = [str(value) for value in values]
    shown = ", ".join(texts[:SHOWN]) or "none"
    return shown if len(texts) <= SHOWN else f"{shown} and {len(texts) - SHOWN:,} more"


def first_line(error: BaseException) -> str:
    """The type and the first line of what went wrong, looking through a wrapper around it."""
    reason = error.__cause__ or error
    return ": ".join([type(reason).__name__, *str(reason).strip().splitlines()[:1]])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question for the end of a message; empty if no known word is close.

    Examples
    --------
    >>> did_you_mean("topq", ["topk", "topp", "window"])
    '; did you mean topk or topp?'
    >>> did_you_mean("x", ["topk", "window"])
    ''
    """
    names = list(known)
    close = sorted(difflib.get_close_matches(word, names, n=2), key=names.index)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class Shortage(Enum):
    """Space on the disk, or memory."""

    DISK = "no space is left on the device"
    MEMORY = "there is not enough memory; use smaller batches or shorter texts"


# as safetensors and PyTorch say it, whose errors have no number
SAID = {
    Shortage.DISK: ("No space left on device", "PytorchStreamWriter failed writing"),
    Shortage.MEMORY: ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc"),
}
NUMBERS = {
    errno.ENOSPC: Shortage.DISK,
    errno.EDQUOT: Shortage.DISK,
    errno.ENOMEM: Shortage.MEMORY,
}


def shortage(error: BaseException | None) -> Shortage | None:
    """The shortage behind the error, or behind one of its causes; None for any other error."""
    import torch

    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return Shortage.MEMORY
        if isinstance(error, OSError) and error.errno in NUMBERS:
            return NUMBERS[error.errno]
        for kind, words in SAID.items():
            if any(each in str(error) for each in words):
                return kind
        error = error.__cause__ or error.__context__
    return None
