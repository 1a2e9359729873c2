"""Which runs a study has: its configurations and seeds, as values; how they are written down, and how they grow."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from crisp_attention.errors import OptionError, listed
from crisp_attention.flags import separated
from crisp_attention.methods.heads import PerHead
from crisp_attention.methods.method import AnyMethod, Method
from crisp_attention.methods.spec import parse
from crisp_attention.runs.flat import schedule_to
from crisp_attention.runs.spec import Data, Recipe, RunSpec
from crisp_attention.runs.treatment import Treatment, treatment_from_dict
from crisp_attention.studies.attention import DENSE, Attention, as_treatment

SPARSITY_RANGE = (0.3, 0.95)  # of a search that is given none
TRIALS = 30


@dataclass(frozen=True)
class Configuration:
    """One line of a comparison: what is done to the model, and the recipe with which it is trained.

    note: what a reader of the report should know of it.
    """

    treatment: Treatment
    recipe: Recipe = field(default_factory=Recipe)
    note: str = ""

    @property
    def id(self) -> str:
        """The spec in letters that any file system takes; the run folders are named after it."""
        return re.sub(r"[^\w.]+", "-", self.treatment.spec)

    @property
    def spec(self) -> str:
        return self.treatment.spec

    @property
    def label(self) -> str:
        return self.treatment.label

    @property
    def is_dense(self) -> bool:
        return self.treatment.is_dense

    @property
    def is_control(self) -> bool:
        return self.treatment.is_control


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the numbers of a study.

    metric: the main metric of its verdicts, None for that of the task.
    search: what the configurations were chosen from, where they were.
    """

    model: str
    data: Data
    configurations: tuple[Configuration, ...]
    seeds: tuple[int, ...]
    metric: str | None = None
    search: Mapping[str, Any] | None = None

    def runs(self) -> list[tuple[Configuration, int]]:
        """All runs, seed by seed, so that an unfinished study holds every configuration as often."""
        return [(configuration, seed) for seed in self.seeds for configuration in self.configurations]

    def run(self, configuration: Configuration, seed: int) -> RunSpec:
        """One of them."""
        base = RunSpec(
            model=self.model,
            data=self.data,
            method=Method(),
            recipe=configuration.recipe,
            seed=seed,
            metric=self.metric,
        )
        return configuration.treatment.run(base)

    @property
    def dense(self) -> Configuration:
        """The baseline that every study has."""
        return next(each for each in self.configurations if each.is_dense)

    def control(self, configuration: Configuration) -> Configuration | None:
        """The random control that drops as much as the configuration, if the study has one."""
        wanted = None if configuration.is_control else configuration.treatment.control()
        return next((each for each in self.configurations if wanted and each.spec == wanted.spec), None)

    def check_extends(self, before: "Plan", where: str, *, moved: bool = False) -> None:
        """Raise OptionError, saying which, unless this plan has all runs of the plan `before`, unchanged.

        moved: whether the data may have another name, because their contents were compared.
        """
        if moved:
            before = replace(before, data=replace(before.data, source=self.data.source))
        if changed := self._changed(before):
            raise OptionError(
                f"the study in {where} was started with other values: {changed}; finished runs are kept as they "
                f"are: choose another output, or use the original values"
            )
        ours = {each.id for each in self.configurations}
        gone = [each.label for each in before.configurations if each.id not in ours]
        gone += [f"seed {seed}" for seed in before.seeds if seed not in self.seeds]
        if gone:
            raise OptionError(
                f"the study in {where} has {listed(gone)} already: a study can only grow; "
                f"include {'that' if len(gone) == 1 else 'those'} too, or choose another output"
            )

    def _changed(self, before: "Plan") -> str:
        if self.search != before.search:
            then, now = (dict(each.search or {}) for each in (before, self))
            names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            return "; ".join(f"{name} was {then.get(name)}, is {now.get(name)}" for name in names)
        theirs = {each.id: each for each in before.configurations}
        for each in self.configurations:
            if (other := theirs.get(each.id)) is None:
                continue
            if changed := self.run(each, 0).differences(before.run(other, 0)):
                return changed if each.is_dense else f"{each.label}: {changed}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; `from_dict` is the inverse."""
        return {
            "model": self.model,
            "data": self.data.to_dict(),
            "metric": self.metric,
            "configurations": [
                {"treatment": each.treatment.to_dict(), "recipe": asdict(each.recipe), "note": each.note}
                for each in self.configurations
            ],
            "seeds": list(self.seeds),
            "search": None if self.search is None else dict(self.search),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Plan":
        """The plan that `to_dict` wrote, or that a study of version 0.1.0 holds in its flat options."""
        if "options" in data:
            return _of_options(data["options"], data["configurations"], data["seeds"])
        return Plan(
            model=data["model"],
            data=Data.from_dict(data["data"]),
            metric=data["metric"],
            configurations=tuple(
                Configuration(
                    treatment_from_dict(each["treatment"]), Recipe.from_dict(each["recipe"]), each["note"]
                )
                for each in data["configurations"]
            ),
            seeds=tuple(data["seeds"]),
            search=data["search"],
        )


def planned(
    model: str | Path,
    data: Data,
    methods: Sequence[AnyMethod | PerHead | Treatment],
    seeds: int | Sequence[int],
    *,
    recipe: Recipe,
    recipes: Mapping[str, Recipe] | None = None,
    metric: str | None = None,
    schedule: str = "constant",
    ramp: tuple[float, float] | None = None,
    **attention: Any,
) -> Plan:
    """Dense, then every method once, each with the recipe of its spec or name, else the one that all share.

    schedule, ramp: how sparsities rise. attention: `layers`, `attention` and `phase` of all methods.
    Raises OptionError for an invalid study.
    """
    treatments = dict.fromkeys([DENSE, *(_scheduled(each, schedule, ramp, attention) for each in methods)])
    if len(treatments) == 1:
        raise OptionError("methods name only dense attention: there is nothing to compare", "methods")
    if twice := {
        each.spec for each in treatments if [other.spec for other in treatments].count(each.spec) > 1
    }:
        raise OptionError(
            f"methods: {listed(sorted(twice))} is given twice, with different layers or phases", "methods"
        )
    own = dict(recipes or {})
    for target in own:
        if not any(target in (each.spec, each.name) for each in treatments):
            raise OptionError(
                f"recipes: no configuration of the study is {target}; it has "
                f"{listed(each.spec for each in treatments)}",
                "recipes",
            )
    chosen = tuple(seeds) if isinstance(seeds, Sequence) else tuple(range(seeds))
    if not chosen:
        raise OptionError(f"seeds must be at least 1, got {seeds}", "seeds")
    plan = Plan(
        model=str(model),
        data=data,
        metric=metric,
        configurations=tuple(
            Configuration(each, own.get(each.spec) or own.get(each.name) or recipe) for each in treatments
        ),
        seeds=chosen,
    )
    for each in plan.configurations:  # invalid values are reported before anything is read
        plan.run(each, chosen[0])
    return plan


def _scheduled(
    given: AnyMethod | PerHead | Treatment,
    shape: str,
    ramp: tuple[float, float] | None,
    attention: Mapping[str, Any],
) -> Treatment:
    found = as_treatment(given, **attention)
    if isinstance(given, Treatment) or not isinstance(found, Attention) or found.is_dense:
        return found
    return replace(found, schedule=schedule_to(found.method, shape, ramp))


def _of_options(options: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], seeds: Iterable[int]) -> Plan:
    """The plan of a study.json that held what was typed, and per configuration a spec and its own recipe."""
    configurations = []
    for line in lines:
        method = parse(line["method"])
        rises = line.get("schedule", "constant")
        ramp = None if rises == "constant" else options.get("ramp")
        treatment = (
            DENSE
            if method == Method()
            else Attention(
                method,
                tuple(line.get("layers", ())),
                options.get("attention", "self"),
                options.get("phase", "always"),
                schedule_to(method, rises, ramp and tuple(ramp)),
            )
        )
        recipe = Recipe.from_dict(
            {**options, "learning_rate": line["learning_rate"], "epochs": line["epochs"]}
        )
        configurations.append(Configuration(treatment, recipe, line.get("note", "")))
    return Plan(
        model=options["model"],
        data=Data.from_dict(options),
        configurations=tuple(configurations),
        seeds=tuple(seeds),
        search=_search_of_options(options) if options.get("search") else None,
    )


def searched(
    choices: Iterable[Treatment], trials: int, schedule: str, layers: Sequence[str]
) -> dict[str, Any]:
    """What `Plan.search` holds: of each series the lowest and highest sparsity, how many runs, and what is given."""
    found: dict[str, list[float] | None] = {}
    for each in choices:
        known = [*(found.get(each.series) or []), *([] if each.sparsity is None else [each.sparsity])]
        found[each.series] = [min(known), max(known)] if known else None
    return {"choices": found, "trials": trials, "schedule": schedule, "layers": list(layers)}


def _search_of_options(options: Mapping[str, Any]) -> dict[str, Any]:
    levels = [float(word) for word in separated(options["sparsity"])] or [*SPARSITY_RANGE]
    choices: list[Treatment] = []
    for word in separated(options["method"]):
        found = Attention(parse(word))
        own = found.sparsity is None or "sparsity=" in word
        choices += [found] if own else [found.at(level) for level in levels if level]
    kept = [each for each in choices if not each.is_control]
    return searched(kept, options["trials"] or TRIALS, options["schedule"], options["layers"])
