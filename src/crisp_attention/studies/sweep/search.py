"""`crisp sweep --search`: recipes chosen on the validation split, dense and sparse alike, then confirmed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import optuna
import pandas as pd
from optuna.trial import TrialState
from rich.console import Console

from crisp_attention.errors import OptionError
from crisp_attention.methods.rules import RandomK
from crisp_attention.methods.spec import parse
from crisp_attention.runs.options import FinetuneOptions
from crisp_attention.studies.options import SweepOptions
from crisp_attention.studies.study import Configuration, control_of
from crisp_attention.studies.sweep.campaign import Campaign
from crisp_attention.studies.sweep.plan import run_options, sparsities, specs_of, words
from crisp_attention.studies.sweep.pool import Pool
from crisp_attention.studies.sweep.queue import Planned, Queue
from crisp_attention.studies.sweep.view import View

SEARCH = "search"
SEED = 0
TRIALS, FEWEST_TRIALS = 30, 6
DENSE_SHARE = 3  # one trial of three is dense
SPARSITY_RANGE = (0.3, 0.95)
SPARSITY_STEP = 0.05
LEARNING_RATE_FACTOR = 4.0
SCHEDULES = ("constant", "linear", "cubic")
Kind = Literal["dense", "sparse"]


class Search:
    """What Optuna chooses from, and the configuration that a choice stands for.

    Dense and sparse are two Optuna studies: what one learns of learning rates, and of hopeless runs, says
    nothing of the other.
    """

    def __init__(self, options: SweepOptions, layers: int) -> None:
        """`layers`: how many attention layers the model has. Raises OptionError if there is nothing to choose."""
        self.options = options
        self.methods = [word for word in words(options.method) if not _is_random(word)]
        self.trials = TRIALS if options.trials is None else options.trials
        if not self.methods:
            raise OptionError(
                "--search needs a --method to choose: random keys are the control, not a choice"
            )
        if self.trials < FEWEST_TRIALS:
            raise OptionError(f"--trials must be at least {FEWEST_TRIALS}, got {self.trials}")
        if options.recipe:
            raise OptionError("--recipe says what --search is to find; leave one out")
        levels = [level for level in sparsities(options) if level > 0] if options.sparsity else SPARSITY_RANGE
        self.range = (min(levels), max(levels))
        half = layers // 2
        self.layers = {"all": (), "lower half": (f"0-{half - 1}",), "upper half": (f"{half}-{layers - 1}",)}
        if options.layers or layers < 2:
            self.layers = {"as given": options.layers}
        self.schedules = SCHEDULES if options.schedule == "constant" else (options.schedule,)

    def planned(self, kind: Kind) -> list[Planned]:
        """The trials of a kind."""
        dense = self.trials // DENSE_SHARE
        count = dense if kind == "dense" else self.trials - dense
        return [Planned(f"{kind}-trial-{number:03}", {}) for number in range(count)]

    def suggest(self, kind: Kind, trial: optuna.Trial) -> Configuration:
        """Let Optuna choose."""
        rate = self.options.learning_rate
        # by the trial's number: workers that draw alike would try the same things
        trial.study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        trial.suggest_float(
            "learning_rate", rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR, log=True
        )
        if kind == "sparse":
            word = trial.suggest_categorical("method", self.methods)
            trial.suggest_categorical("layers", list(self.layers))
            found = specs_of(word, self.range)
            if len(found) > 1:
                trial.suggest_float("sparsity", *self.range, step=SPARSITY_STEP)
            if parse(found[0]).sparsity is not None:
                trial.suggest_categorical("schedule", self.schedules)
        return self.configuration(kind, trial.params)

    def configuration(self, kind: Kind, chosen: Mapping[str, Any], note: str = "") -> Configuration:
        """The configuration of a trial's parameters."""
        recipe = {"learning_rate": chosen["learning_rate"], "epochs": self.options.epochs, "note": note}
        if kind == "dense":
            return Configuration("dense", **recipe)
        levels = [round(chosen["sparsity"], 2)] if "sparsity" in chosen else self.range
        return Configuration(
            specs_of(chosen["method"], levels)[0],
            schedule=chosen.get("schedule", "constant"),
            layers=self.layers[chosen["layers"]],
            **recipe,
        )

    def run(self, queue_of: Callable[[str], Queue], console: Console) -> tuple[Configuration, ...]:
        """Run the trials; the best dense and the best sparse configuration, and its random control.

        queue_of: the queue of each kind. Raises OptionError if no trial of a kind was finished.
        """
        (self.options.output / SEARCH).mkdir(exist_ok=True)
        kinds: tuple[Kind, ...] = ("dense", "sparse")
        dense, sparse = (self._run(kind, queue_of(kind), console) for kind in kinds)
        control = control_of(parse(sparse.method))
        if control is None:
            return dense, sparse
        return dense, sparse, replace(sparse, method=control.spec, note="control: the recipe of the best")

    def _run(self, kind: Kind, queue: Queue, console: Console) -> Configuration:
        folder = self.options.output / SEARCH

        def start(trial: optuna.Trial) -> FinetuneOptions:
            return run_options(
                self.options, self.suggest(kind, trial), SEED, folder / trial.user_attrs["run"]
            )

        planned = self.planned(kind)
        view = View(console, {f"search, {kind}": [each.name for each in planned]})
        pool = Pool(self.options.workers, self.options.output / "logs")
        with view:
            Campaign(queue, pool, view, start, pruned=True).work(planned)
        trials = [each for each in queue.study.get_trials() if each.state.is_finished()]
        rows = [
            {"run": each.user_attrs["run"], "state": each.state.name, **each.params, "accuracy": each.value}
            for each in trials
        ]
        pd.DataFrame(rows).to_csv(self.options.output / f"search-{kind}.csv", index=False)
        done = [each for each in trials if each.state == TrialState.COMPLETE]
        if not done:
            raise OptionError(
                f"--search: no {kind} trial was finished, so none can be chosen; see --retry-failed"
            )
        best = max(done, key=lambda each: each.value or 0.0)
        note = f"best of {len(planned)} {kind} trials on validation ({best.value:.1%})"
        return self.configuration(kind, best.params, note)


def _is_random(word: str) -> bool:
    return word.split("+")[-1].split(":")[0] == RandomK.name
