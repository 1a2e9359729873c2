"""Checks of what layouts, rules and branches are given."""

from collections.abc import Sequence


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_number(name: str, value: object, interval: str) -> None:
    """Raise TypeError unless `value` is a number, ValueError unless it is in `interval`, such as "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number in {interval}, got {value!r}")
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):  # NaN is neither
        raise ValueError(f"{name} must be in {interval}, got {value}")


def check_one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of the `known` words."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
