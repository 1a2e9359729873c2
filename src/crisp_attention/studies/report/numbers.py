"""Numbers as people read them; a dash stands for what there is none of."""

import math
from collections.abc import Callable

from crisp_attention.studies.statistics import Interval

NONE = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """A share in percent, without the sign: 84.68."""
    return _shown(value, lambda share: f"{100 * share:.{digits}f}")


def points(value: float | None) -> str:
    """A difference of shares in points, signed: +0.84, −1.20."""
    return _shown(value, lambda share: f"{round(100 * share, 2) + 0.0:+.2f}".replace("-", "−"))


def span(interval: Interval | None) -> str:
    """The bounds of an interval of differences, in points: −0.31 to +1.99."""
    return NONE if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def plus_minus(interval: Interval | None) -> str:
    """Half the width of an interval of shares, in percent: ± 0.84; nothing without an interval."""
    return "" if interval is None else f"± {percent(interval.half_width)}"


def probability(value: float | None) -> str:
    """A p value: 0.034, or that it is below 0.001."""
    return _shown(value, lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}")


def decimal(value: float | None) -> str:
    """A plain number: 0.363."""
    return _shown(value, lambda number: f"{number:.3f}")


def factor(value: float | None) -> str:
    """A ratio: × 1.04."""
    return _shown(value, lambda ratio: f"× {ratio:.2f}")


def seconds(value: float | None) -> str:
    """A duration of a step, in seconds with three digits that count."""
    return _shown(value, lambda duration: f"{duration:#.3g}")


def gibibytes(value: float | None) -> str:
    """Bytes in GiB."""
    return _shown(value, lambda size: f"{size / 2**30:.2f}")


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None or math.isnan(value) else form(value)
