"""Libraries that not every installation has. Imports nothing heavy."""

from importlib import import_module
from typing import Any

# the modules that each extra installs; the command needs them all
RUNS = {
    "accelerate",
    "datasets",
    "matplotlib",
    "packaging",
    "pandas",
    "PIL",
    "psutil",
    "pyarrow",
    "rich",
    "sklearn",
    "scipy",
}
STUDIES = {"filelock", "jinja2", "markupsafe", "optuna", "sqlalchemy"}
CLI = {"tyro", "yaml"}


def extra_of(module: str | None) -> str | None:
    """The extra that installs a module missing for the command `crisp`; None for a module of no extra.

    Examples
    --------
    >>> extra_of("optuna.trial"), extra_of("json")
    ('all', None)
    """
    return "all" if (module or "").partition(".")[0] in RUNS | STUDIES | CLI else None


def needs(library: str, extra: str) -> Any:
    """Import a library that only an extra of the package installs.

    Parameters
    ----------
    library
        The module to import.
    extra
        The extra that installs it, as pyproject.toml names it.

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
