"""What a study could have shown: the smallest true differences that a test finds with a power of 80 %.

comparisons: how many are tested together; the level is 5 % over their number, Holm's first step.
standard_error: that of the mean difference; the results have its unit.
"""

from scipy import special

ALPHA = 0.05
POWER = 0.8


def detectable_by_t_test(standard_error: float, seeds: int, comparisons: int) -> float:
    """For a two-sided paired t-test over so many seeds, from the noncentral t distribution.

    The same as statsmodels' TTestPower.solve_power, which at few seeds and low levels stops early without a word.
    """
    critical = -special.stdtrit(seeds - 1, ALPHA / comparisons / 2)
    return float(special.nctdtrinc(seeds - 1, 1 - POWER, critical)) * standard_error


def detectable_by_bootstrap(standard_error: float, comparisons: int) -> float:
    """For the two-sided test of a bootstrap whose draws are as good as normal."""
    return float(special.ndtri(POWER) - special.ndtri(ALPHA / comparisons / 2)) * standard_error
