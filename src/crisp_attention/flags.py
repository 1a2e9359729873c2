"""How options are displayed in the help of a command. Imports nothing heavy."""

from typing import Annotated

from tyro.conf import arg

# Each help text states the default itself: no "(default: None)" after it.
Real = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")]
Flag = Annotated[bool, arg(help_behavior_hint="")]
