"""`crisp sweep`: from flags to a study, and its printed report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from rich.console import Console

from crisp_attention.cli.options import StudyOptions, SweepOptions, run_values
from crisp_attention.cli.options import words as typed
from crisp_attention.cli.report import end_with_report
from crisp_attention.errors import OptionError
from crisp_attention.flags import separated
from crisp_attention.methods.method import Method
from crisp_attention.methods.spec import parse
from crisp_attention.runs.pruning.treatment import NAME as PRUNE
from crisp_attention.runs.pruning.treatment import Pruning
from crisp_attention.runs.spec import Data, Recipe
from crisp_attention.runs.treatment import Treatment
from crisp_attention.studies.folder import StudyFolder
from crisp_attention.studies.plan import SPARSITY_RANGE, TRIALS, Plan, planned, searched
from crisp_attention.studies.sweep.search import Search
from crisp_attention.studies.sweep.storage import without_password
from crisp_attention.studies.sweep.sweep import Work, carry_out

DEFAULT_METHODS = ("topk", "random")
DEFAULT_SPARSITY = ("0.8",)
OWN_RECIPE = {"learning_rate": float, "epochs": float}


def run_sweep(
    options: SweepOptions,
    console: Console,
    command: Sequence[str] | None = None,
    published: Mapping[str, Any] | None = None,
) -> StudyFolder:
    """Run the study, write its report and print what it says; progress goes to `console`.

    command: what was typed, if it was not `crisp sweep`. Raises as `crisp.sweep` does.
    """
    plan, search = plan_of(options)
    said = command or ("crisp", "sweep", *typed(without_secrets(options)))
    study = carry_out(plan, work_of(options), console, command=said, published=published, search=search)
    end_with_report(study, options.storage, console)
    return study


def plan_of(options: SweepOptions) -> tuple[Plan, Search | None]:
    """The study that the options describe, and what chooses its configurations, if something does."""
    if options.trials is not None and not options.search:
        raise OptionError("trials can only be given with search=True", "trials")
    if options.search and options.treatment:
        raise OptionError("treatment cannot be combined with search=True", "treatment")
    if options.search and options.recipe:
        raise OptionError("recipe cannot be combined with search=True, which chooses the recipes", "recipe")
    levels = _levels(options)
    words = options.method or (() if options.treatment else DEFAULT_METHODS)
    methods: list[Method | Treatment] = [each for word in separated(words) for each in _methods(word, levels)]
    methods += [each for word in separated(options.treatment) for each in _treatments(word, levels)]
    recipe, data = Recipe.from_dict(vars(options)), Data.from_dict(run_values(options))
    recipes = _recipes(options.recipe, recipe)
    plan = planned(
        options.model,
        data,
        methods,
        options.seeds,
        recipe=recipe,
        recipes=recipes,
        metric=options.metric,
        # a search chooses a schedule itself
        schedule="constant" if options.search else options.schedule,
        ramp=None if options.search else options.ramp,
        layers=options.layers,
        attention=options.attention,
        phase=options.phase,
    )
    if not options.search:
        return plan, None
    choices = [each.treatment for each in plan.configurations if not (each.is_dense or each.is_control)]
    chosen = searched(
        choices, TRIALS if options.trials is None else options.trials, options.schedule, options.layers
    )
    plan = replace(plan, search=chosen)
    return plan, Search(plan, options.ramp)


def work_of(options: StudyOptions) -> Work:
    """Where the study is and who works on it."""
    own = {each.name: getattr(options, each.name) for each in fields(StudyOptions)}
    return Work(name=own.pop("study"), **own)


def without_secrets(options: Any) -> Any:
    """The options as they may be written down: without the password that a storage may have."""
    return replace(options, storage=without_password(options.storage)) if options.storage else options


def _levels(options: SweepOptions) -> list[float]:
    levels = []
    for word in separated(
        options.sparsity or (map(str, SPARSITY_RANGE) if options.search else DEFAULT_SPARSITY)
    ):
        try:
            level = float(word)
        except ValueError:
            level = -1.0
        if not 0 <= level < 1:
            raise OptionError(f"sparsity: expected numbers in [0, 1), got {word}", "sparsity")
        if level or not options.search:
            levels.append(level)
    return levels


def _methods(word: str, levels: Sequence[float]) -> list[Method]:
    """The method at these sparsities; itself alone if it says its sparsity, or has none."""
    try:
        return [parse(word, sparsity=level) if level else Method() for level in levels]
    except (TypeError, ValueError):
        pass  # tried without them below
    try:
        return [parse(word)]
    except (TypeError, ValueError) as error:
        raise OptionError(f"method {word}: {error}", "method") from error


def _treatments(word: str, levels: Sequence[float]) -> list[Pruning]:
    """The treatment at these sparsities; itself alone if it says its own."""
    try:
        found = [Pruning.parse(word, sparsity=level) for level in levels]
    except (TypeError, ValueError) as error:
        raise OptionError(f"treatment {word}: {error}", "treatment") from error
    return list(dict.fromkeys(found))


def _recipes(given: Iterable[str], shared: Recipe) -> dict[str, Recipe]:
    """The recipes of `METHOD:KEY=VALUE`, by the method's name or spec."""
    found: dict[str, Recipe] = {}
    for text in given:
        name, *settings = text.split(":")
        target, own = [name], {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in OWN_RECIPE:
                target.append(setting)
                continue
            try:
                own[key] = OWN_RECIPE[key](value)
            except ValueError as error:
                raise OptionError(
                    f"recipe {text}: {key} expects a number, got {value!r}", "recipe"
                ) from error
        if not own:
            raise OptionError(
                f"recipe {text}: expected METHOD:learning_rate=VALUE or METHOD:epochs=VALUE", "recipe"
            )
        try:
            whole = ":".join(target)
            if name == PRUNE and len(target) > 1:
                spec = Pruning.parse(whole).spec
            else:
                spec = parse(whole).spec if len(target) > 1 else name
        except (TypeError, ValueError) as error:
            raise OptionError(f"recipe {text}: {error}", "recipe") from error
        found[spec] = replace(found.get(spec) or found.get(name) or shared, **own)  # type: ignore[arg-type]
    return found
