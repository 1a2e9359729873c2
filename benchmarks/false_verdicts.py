"""How often a verdict of `crisp report` is wrong where nothing is better: the table in docs/results.md.

    python -m benchmarks.false_verdicts

1,000 studies each of four configurations with one true accuracy, 150 examples and 3 or 5 seeds, in
worlds that differ in what varies. Prints the share of studies with a "better", and with any verdict.
"""

import numpy as np

from crisp_attention.studies.analysis import Verdict
from tests.studies.test_analysis_simulation import CROSSED, EXAMPLES_ONLY, SEEDS_ONLY, verdicts

STUDIES = 1000


def main() -> None:
    for name, world in (
        ("seeds and examples", CROSSED),
        ("seeds only", SEEDS_ONLY),
        ("examples only", EXAMPLES_ONLY),
    ):
        for seeds in (3, 5):
            random = np.random.default_rng(0)
            found = [verdicts(world.correct(random, [0.85] * 4, seeds, 150)) for _ in range(STUDIES)]
            better = np.mean([Verdict.BETTER in each for each in found])
            wrong = np.mean([set(each) != {Verdict.NOT_SHOWN} for each in found])
            print(f"{name}, {seeds} seeds: better {better:.1%}, better or worse {wrong:.1%}", flush=True)


if __name__ == "__main__":
    main()
