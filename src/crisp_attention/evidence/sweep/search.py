"""`crisp sweep --search`: recipes chosen on the validation split, dense and sparse alike, then confirmed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from crisp_attention.evidence.options import SweepOptions
from crisp_attention.evidence.study import Configuration
from crisp_attention.evidence.sweep.campaign import Campaign
from crisp_attention.evidence.sweep.plan import run_options, sparsities, specs_of, words
from crisp_attention.evidence.sweep.pool import Pool
from crisp_attention.evidence.sweep.queue import Planned, Queue
from crisp_attention.evidence.sweep.view import View
from crisp_attention.specs import parse
from crisp_attention.training.options import FinetuneOptions, OptionError

SEARCH = "search"
SEED = 0
DENSE_EVERY = 3  # one trial of three is dense
SPARSITY_RANGE = (0.3, 0.95)
SPARSITY_STEP = 0.05
LEARNING_RATE_FACTOR = 4.0
SCHEDULES = ("constant", "linear", "cubic")


class Search:
    """What Optuna chooses from, and the configuration that a choice stands for."""

    def __init__(self, options: SweepOptions, layers: int) -> None:
        """`layers`: how many attention layers the model has."""
        self.options = options
        self.methods = [word for word in words(options.method) if not parse(word.split(":")[0]).uses_seed]
        if not self.methods:
            raise OptionError(
                "--search needs a --method to choose: random keys are the control, not a choice"
            )
        levels = [level for level in sparsities(options) if level > 0]
        self.range = (min(levels), max(levels)) if len(set(levels)) > 1 else SPARSITY_RANGE
        half = layers // 2
        self.layers = {"all": (), "lower half": (f"0-{half - 1}",), "upper half": (f"{half}-{layers - 1}",)}
        if options.layers or layers < 2:
            self.layers = {"as given": options.layers}
        self.schedules = SCHEDULES if options.schedule == "constant" else (options.schedule,)

    def planned(self) -> list[Planned]:
        """The trials; one of three is dense, so that dense is tuned with as much care."""
        return [
            Planned(f"trial-{number:03}", {"kind": "sparse" if number % DENSE_EVERY else "dense"})
            for number in range(self.options.trials)
        ]

    def suggest(self, trial: optuna.Trial) -> Configuration:
        """Let Optuna choose."""
        rate = self.options.learning_rate
        # by the trial's number: workers that draw alike would try the same things
        trial.study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)
        trial.suggest_float(
            "learning_rate", rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR, log=True
        )
        if trial.suggest_categorical("kind", ["dense", "sparse"]) == "sparse":
            word = trial.suggest_categorical("method", self.methods)
            trial.suggest_categorical("layers", list(self.layers))
            if len(specs_of(word, self.range)) > 1:
                trial.suggest_float("sparsity", *self.range, step=SPARSITY_STEP)
                trial.suggest_categorical("schedule", self.schedules)
        return self.configuration(trial.params)

    def configuration(self, chosen: Mapping[str, Any], note: str = "") -> Configuration:
        """The configuration of a trial's parameters."""
        recipe = {"learning_rate": chosen["learning_rate"], "epochs": self.options.epochs, "note": note}
        if chosen["kind"] == "dense":
            return Configuration("dense", **recipe)
        levels = [round(chosen["sparsity"], 2)] if "sparsity" in chosen else []
        return Configuration(
            specs_of(chosen["method"], levels)[0] if levels else parse(chosen["method"]).spec,
            schedule=chosen.get("schedule", "constant"),
            layers=self.layers[chosen["layers"]],
            **recipe,
        )

    def run(self, queue: Queue, console: Console) -> tuple[Configuration, ...]:
        """Run the trials; the best dense and the best sparse configuration, and its random control.

        Raises OptionError if no trial of one kind was finished.
        """
        folder = self.options.output / SEARCH
        folder.mkdir(exist_ok=True)

        def start(trial: optuna.Trial) -> FinetuneOptions:
            return run_options(self.options, self.suggest(trial), SEED, folder / trial.user_attrs["run"])

        planned = self.planned()
        view = View(console, {SEARCH: [each.name for each in planned]}, self.options.workers)
        with view:
            Campaign(
                queue, Pool(self.options.workers, self.options.output / "logs"), view, start, pruned=True
            ).work(planned)
        trials = [each for each in queue.study.get_trials() if each.params.get("kind")]
        table = queue.study.trials_dataframe(attrs=("number", "user_attrs", "state", "value", "params"))
        table.drop(columns="user_attrs_worker").to_csv(self.options.output / "search.csv", index=False)
        dense, sparse = (self._best(trials, kind) for kind in ("dense", "sparse"))
        method = parse(sparse.method)
        control = replace(
            sparse, method=f"random:sparsity={method.sparsity}", note="control: the recipe of the best"
        )
        return (dense, sparse, control) if method.sparsity else (dense, sparse)

    def _best(self, trials: list[optuna.trial.FrozenTrial], kind: str) -> Configuration:
        done = [each for each in trials if each.params["kind"] == kind and each.state == TrialState.COMPLETE]
        if not done:
            raise OptionError(
                f"--search: no {kind} trial was finished, so none can be chosen; see --retry-failed"
            )
        best = max(done, key=lambda each: each.value or 0.0)
        note = f"best of {len(done)} finished {kind} trials on validation ({best.value:.1%})"
        return self.configuration(best.params, note)
