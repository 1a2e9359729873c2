"""Libraries that not every installation has. Imports nothing heavy."""

from importlib import import_module
from typing import Any


def needs(library: str, extra: str) -> Any:
    """Import a library that only an extra of the package brings.

    Parameters
    ----------
    library
        The module to import.
    extra
        The extra that brings it, as pyproject.toml names it.

    Returns
    -------
    The module.

    Raises
    ------
    ModuleNotFoundError
        With the command that installs the extra.

    Examples
    --------
    >>> needs("json", extra="runs").dumps([1])
    '[1]'
    """
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this needs {library}, which is not installed: pip install "crisp-attention[{extra}]"',
            name=error.name,
        ) from error
