"""The rule of the verdict in worlds whose truth is known: how often it is wrong, and what it finds."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import ndtri

from crisp_attention.studies.analysis import Verdict
from crisp_attention.studies.analysis.compare import compare, decide

DRAWS = 1000  # with a few hundred the draws, always the same, favour one side


@dataclass
class World:
    """Who is right where: examples are hard (for all), configurations deal with them each in its own way.

    examples: standard deviation of a configuration's own way with an example, whatever the seed.
    seeds: of the level of a seed.
    chance: of a seed's own way with an example.
    """

    seeds: float
    examples: float
    chance: float

    def correct(self, random, accuracies, seeds, examples):
        """(configurations, seeds, examples); over all seeds and examples each has its accuracy."""
        shape, normal = (len(accuracies), seeds, examples), random.normal
        score = normal(size=examples) + self.examples * normal(size=(shape[0], 1, examples))
        score = score + self.seeds * normal(size=(*shape[:2], 1)) + self.chance * normal(size=shape)
        spread = np.sqrt(1 + self.examples**2 + self.seeds**2 + self.chance**2)
        return score < spread * ndtri(accuracies)[:, None, None]


CROSSED = World(seeds=0.12, examples=0.5, chance=0.2)
SEEDS_ONLY = World(seeds=0.2, examples=0, chance=0)
EXAMPLES_ONLY = World(seeds=0, examples=0.5, chance=0)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def verdicts(correct):
    baseline, *others = correct
    family = [compare(each, baseline, len(others), DRAWS) for each in others]
    return [verdict for _, verdict in decide(family)]


@pytest.mark.parametrize(
    ("world", "seeds", "studies"),
    [
        (CROSSED, 5, 200),
        pytest.param(CROSSED, 3, 150, marks=pytest.mark.slow),
        pytest.param(SEEDS_ONLY, 3, 150, marks=pytest.mark.slow),
        pytest.param(EXAMPLES_ONLY, 5, 150, marks=pytest.mark.slow),
    ],
)
def test_where_nothing_is_better_at_most_5_percent_of_studies_say_so(random, world, seeds, studies):
    found = [verdicts(world.correct(random, [0.85] * 4, seeds, 150)) for _ in range(studies)]
    assert np.mean([Verdict.BETTER in each for each in found]) <= 0.05
    wrong = np.mean([set(each) != {Verdict.NOT_SHOWN} for each in found])
    assert wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


@pytest.mark.slow
def test_the_t_interval_covers_at_its_level_where_seeds_vary(random):
    found = [compare(*SEEDS_ONLY.correct(random, [0.8, 0.8], 5, 500), 1, 2).difference for _ in range(600)]
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=0.021)


@pytest.mark.parametrize(
    ("world", "seeds", "least", "most"),
    [
        pytest.param(CROSSED, 15, 0.93, 0.99, marks=pytest.mark.slow),
        (EXAMPLES_ONLY, 5, 0.91, 0.99),
        (SEEDS_ONLY, 5, 0.77, 0.89),  # as the docstring of the bootstrap says: what the t-test is there for
    ],
)
def test_what_the_bootstrap_s_interval_covers(random, world, seeds, least, most):
    found = [compare(*world.correct(random, [0.8, 0.8], seeds, 200), 1, DRAWS).bootstrap for _ in range(200)]
    assert least <= np.mean([each.low <= 0 <= each.high for each in found]) <= most


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(0.05, 0.5, 0.3), marks=pytest.mark.slow),
        pytest.param(World(0.06, 0, 0), marks=pytest.mark.slow),
        EXAMPLES_ONLY,
    ],
)
def test_the_detectable_difference_is_found_in_about_80_percent(random, world):
    # near 50 % accuracy, where a shift does not change the variance; 1000 examples keep the shift small
    nothing = [compare(*world.correct(random, [0.5, 0.5], 5, 1000), 1, DRAWS).detectable for _ in range(100)]
    true = np.sqrt(np.mean(np.square(nothing)))
    accuracies = [0.5 - true / 2, 0.5 + true / 2]
    found = [verdicts(world.correct(random, accuracies, 5, 1000)) == [Verdict.BETTER] for _ in range(250)]
    assert 0.7 <= np.mean(found) <= 0.9
