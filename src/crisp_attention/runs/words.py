"""Options written as a person would type them."""

from dataclasses import MISSING, fields
from typing import Any

REPEATED = ("training", "recipe")


def words(options: Any) -> list[str]:
    """The arguments of a command line that gives these options; defaults are left out."""
    found: list[str] = []
    for field in fields(options):
        value, default = getattr(options, field.name), field.default
        if value == default and default is not MISSING:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif isinstance(value, tuple) and field.name in REPEATED:
            found += [word for each in value for word in (flag, str(each))]
        else:
            found += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return found
