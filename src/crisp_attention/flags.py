"""How options are displayed in the help of a command, and lists read. Imports nothing heavy."""

from collections.abc import Iterable
from typing import Annotated

from tyro.conf import arg

# Each help text states the default itself: no "(default: None)" after it.
Real = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")]
Flag = Annotated[bool, arg(help_behavior_hint="")]


def named(given: Iterable[str]) -> list[str]:
    """Names that may have spaces: what was separated by commas where there is one, else the words as they are.

    One that is missing, as between two commas, is empty.
    """
    words = list(given)
    if any("," in each for each in words):
        words = " ".join(words).split(",")
    return [each.strip() for each in words]


def separated(given: Iterable[str]) -> list[str]:
    """What was separated by commas or spaces."""
    return [word for text in given for word in text.replace(",", " ").split()]
