"""Several tests at once."""

from collections.abc import Sequence

from statsmodels.stats.multitest import multipletests


def holm(ps: Sequence[float]) -> list[float]:
    """The ps after Holm's step-down correction (Holm 1979), in their order; of none, none."""
    return multipletests(ps, method="holm")[1].tolist() if len(ps) else []
