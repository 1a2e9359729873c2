"""A search: recipes chosen on the validation split, dense and sparse alike, then confirmed with other seeds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
from optuna.trial import TrialState
from rich.console import Console

from crisp_attention.errors import OptionError
from crisp_attention.runs.flat import schedule_to
from crisp_attention.studies.attention import Attention
from crisp_attention.studies.plan import Configuration, Plan
from crisp_attention.studies.sweep.campaign import Campaign
from crisp_attention.studies.sweep.check import Checked
from crisp_attention.studies.sweep.child import Asked
from crisp_attention.studies.sweep.pool import Pool
from crisp_attention.studies.sweep.queue import Planned, Queue
from crisp_attention.studies.sweep.view import View

SEARCH = "search"
SEED = 0
FEWEST_TRIALS = 6
DENSE_SHARE = 3  # one trial of three is dense
SPARSITY_STEP = 0.05
LEARNING_RATE_FACTOR = 4.0
SCHEDULES = ("constant", "linear", "cubic")
Kind = Literal["dense", "sparse"]


@dataclass(frozen=True)
class Search:
    """What Optuna chooses from, and the configuration that a choice stands for.

    Dense and sparse are two Optuna studies: learning rates and pruned runs of one say nothing about
    the other.

    plan: the study with everything that can be chosen as its configurations, all with one recipe.
    ramp: over which fractions of training a sparsity that rises does so.
    """

    plan: Plan
    ramp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            raise OptionError(
                "search needs methods to choose from: random keys are only the control", "search"
            )
        if self.trials < FEWEST_TRIALS:
            raise OptionError(f"trials must be at least {FEWEST_TRIALS}, got {self.trials}", "trials")
        if len({str(each.recipe) for each in self.plan.configurations}) > 1:
            raise OptionError(
                "recipe cannot be combined with search=True, which chooses the recipes", "recipe"
            )

    @property
    def given(self) -> Mapping[str, Any]:
        assert self.plan.search is not None
        return self.plan.search

    @property
    def trials(self) -> int:
        return self.given["trials"]

    @property
    def choices(self) -> dict[str, Attention]:
        """A treatment of every series that may be chosen."""
        found = {each.treatment.series: each.treatment for each in self.plan.configurations}
        return {
            series: each
            for series, each in found.items()
            if isinstance(each, Attention) and series in self.given["choices"]
        }

    def layers(self, count: int) -> dict[str, tuple[str, ...]]:
        """The layers to choose from, in a model of `count` attention layers."""
        if self.given["layers"] or count < 2:
            return {"as given": tuple(self.given["layers"])}
        half = count // 2
        return {"all": (), "lower half": (f"0-{half - 1}",), "upper half": (f"{half}-{count - 1}",)}

    @property
    def schedules(self) -> tuple[str, ...]:
        return SCHEDULES if self.given["schedule"] == "constant" else (self.given["schedule"],)

    def planned(self, kind: Kind) -> list[Planned]:
        """The trials of a kind."""
        dense = self.trials // DENSE_SHARE
        count = dense if kind == "dense" else self.trials - dense
        return [Planned(f"{kind}-trial-{number:03}") for number in range(count)]

    def suggest(self, kind: Kind, trial: optuna.Trial, layers: int) -> Configuration:
        """Let Optuna choose."""
        rate = self.plan.dense.recipe.learning_rate
        # by the trial's number: workers with the same seed would try the same choices
        trial.study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        trial.suggest_float(
            "learning_rate", rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR, log=True
        )
        if kind == "sparse":
            series = trial.suggest_categorical("method", list(self.choices))
            trial.suggest_categorical("layers", list(self.layers(layers)))
            if (ends := self.given["choices"][series]) is not None:
                if ends[0] < ends[1]:
                    trial.suggest_float("sparsity", *ends, step=SPARSITY_STEP)
                trial.suggest_categorical("schedule", self.schedules)
        return self.configuration(kind, trial.params, layers)

    def configuration(
        self, kind: Kind, chosen: Mapping[str, Any], layers: int, note: str = ""
    ) -> Configuration:
        """The configuration of a trial's parameters."""
        recipe = replace(self.plan.dense.recipe, learning_rate=chosen["learning_rate"])
        if kind == "dense":
            return Configuration(self.plan.dense.treatment, recipe, note)
        treatment = self.choices[chosen["method"]]
        if "sparsity" in chosen:
            treatment = replace(treatment, schedule=None).at(round(chosen["sparsity"], 2))
        shape = chosen.get("schedule", "constant")
        ramp = None if shape == "constant" else self.ramp
        schedule = schedule_to(treatment.method, shape, ramp)
        found = replace(treatment, layers=self.layers(layers)[chosen["layers"]], schedule=schedule)
        return Configuration(found, recipe, note)

    def run(
        self, queue_of: Callable[[str], Queue], pool: Pool, checked: Checked, output: Path, console: Console
    ) -> tuple[Configuration, ...]:
        """Run the trials; the best dense and the best sparse configuration, and its random control.

        queue_of: the queue of each kind. Raises OptionError if no trial of a kind was finished.
        """
        (output / SEARCH).mkdir(exist_ok=True)
        kinds: tuple[Kind, ...] = ("dense", "sparse")
        dense, sparse = (self._run(kind, queue_of(kind), pool, checked, output, console) for kind in kinds)
        control = sparse.treatment.control()
        if control is None:
            return dense, sparse
        return dense, sparse, replace(sparse, treatment=control, note="control: the recipe of the best")

    def _run(
        self, kind: Kind, queue: Queue, pool: Pool, checked: Checked, output: Path, console: Console
    ) -> Configuration:
        metric = checked.metric

        def start(trial: optuna.Trial) -> Asked:
            configuration = self.suggest(kind, trial, checked.layers)
            folder = output / SEARCH / trial.user_attrs["run"]
            return Asked(self.plan.run(configuration, SEED), folder, False, pool.command)

        planned = self.planned(kind)
        view = View(console, {f"search, {kind}": [each.name for each in planned]}, metric)
        with view:
            Campaign(queue, pool, view, start, pruned=True).work(planned)
        trials = [each for each in queue.study.get_trials() if each.state.is_finished()]
        rows = [
            {"run": each.user_attrs["run"], "state": each.state.name, **each.params, metric.name: each.value}
            for each in trials
        ]
        pd.DataFrame(rows).to_csv(output / f"search-{kind}.csv", index=False)
        done = [each for each in trials if each.state == TrialState.COMPLETE and each.value is not None]
        if not done:
            raise OptionError(
                f"no {kind} trial was finished, so none can be chosen; retry_failed=True runs them again",
                "search",
            )
        sign = 1 if metric.higher_is_better else -1
        best = max(done, key=lambda each: sign * (each.value or 0.0))
        note = f"best of {len(planned)} {kind} trials on validation ({metric.shown(best.value)})"
        return self.configuration(kind, best.params, checked.layers, note)
