"""The error that a data set raises, and the lists of values in its messages."""

from collections.abc import Iterable

SHOWN = 20


class DataError(ValueError):
    """The data set cannot be used; the message says what was expected and what was found."""


def listed(values: Iterable[object]) -> str:
    """The values separated by commas: the first 20 and how many more there are, "none" when empty."""
    texts = [str(value) for value in values]
    shown = ", ".join(texts[:SHOWN]) or "none"
    return shown if len(texts) <= SHOWN else f"{shown} and {len(texts) - SHOWN:,} more"


def first_line(error: BaseException) -> str:
    """The type and the first line of what went wrong, looking through the wrapper `datasets` adds."""
    reason = error.__cause__ or error
    return ": ".join([type(reason).__name__, *str(reason).strip().splitlines()[:1]])
