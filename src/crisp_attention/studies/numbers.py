"""Numbers as text; a dash stands for a missing one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from crisp_attention.runs.task.metrics import Metric
from crisp_attention.studies.statistics import Interval

NONE = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """A share in percent, without the sign: 84.68."""
    return _shown(value, lambda share: f"{100 * share:.{digits}f}")


def points(value: float | None) -> str:
    """A difference of shares in points, signed: +0.84, −1.20."""
    return _shown(value, lambda share: f"{round(100 * share, 2) + 0.0:+.2f}".replace("-", "−"))


def probability(value: float | None) -> str:
    """A p value: 0.034, or that it is below 0.001."""
    return _shown(value, lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}")


def decimal(value: float | None) -> str:
    """A plain number: 0.363."""
    return _shown(value, lambda number: f"{number:.3f}")


def signed(value: float | None) -> str:
    """A difference of plain numbers: +0.012, −0.009."""
    return _shown(value, lambda number: f"{round(number, 3) + 0.0:+.3f}".replace("-", "−"))


def factor(value: float | None) -> str:
    """A ratio: × 1.04."""
    return _shown(value, lambda ratio: f"× {ratio:.2f}")


def seconds(value: float | None) -> str:
    """A duration of a step, in seconds with three significant digits."""
    return _shown(value, lambda duration: f"{duration:#.3g}")


def gibibytes(value: float | None) -> str:
    """Bytes in GiB."""
    return _shown(value, lambda size: f"{size / 2**30:.2f}")


@dataclass(frozen=True)
class Unit:
    """How scores of a metric are written: shares in percent and their differences in points, others as they are."""

    metric: Metric

    @property
    def title(self) -> str:
        """For the head of a column: accuracy (%), MCC."""
        return f"{self.metric.title} (%)" if self.metric.percent else self.metric.title

    @property
    def differences(self) -> str:
        """What differences are measured in: points, MCC."""
        return "points" if self.metric.percent else self.metric.title

    @property
    def caption(self) -> str:
        """For the foot of a table."""
        return "in percent; differences in points" if self.metric.percent else "and its differences"

    @property
    def scale(self) -> float:
        """By how much scores are multiplied in figures."""
        return 100.0 if self.metric.percent else 1.0

    def score(self, value: float | None, digits: int = 2) -> str:
        """84.68; 0.847."""
        return percent(value, digits) if self.metric.percent else decimal(value)

    def difference(self, value: float | None) -> str:
        """+0.84; +0.008."""
        return points(value) if self.metric.percent else signed(value)

    def span(self, interval: Interval | None) -> str:
        """The bounds of an interval of differences: −0.31 to +1.99."""
        if interval is None:
            return NONE
        return f"{self.difference(interval.low)} to {self.difference(interval.high)}"

    def plus_minus(self, interval: Interval | None) -> str:
        """Half the width of an interval of scores: ± 0.84; nothing without an interval."""
        return "" if interval is None else f"± {self.score(interval.half_width)}"


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None or math.isnan(value) else form(value)
