"""What was asked for, compared when it is continued."""

from collections.abc import Mapping
from typing import Any


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The options that are not what they were, as a person typed them; empty if there are none."""
    return "; ".join(
        f"--{name.replace('_', '-')} was {_shown(before.get(name))}, is {_shown(now[name])}"
        for name in now
        if now[name] != before.get(name)
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    return "not given" if value is None else str(value)
