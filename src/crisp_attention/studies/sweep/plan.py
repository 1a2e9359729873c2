"""Which runs a study has, and the options of each."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from crisp_attention.errors import OptionError
from crisp_attention.files import plain
from crisp_attention.methods.spec import parse
from crisp_attention.runs.options import FinetuneOptions, RecipeOptions
from crisp_attention.runs.spec import RunSpec
from crisp_attention.studies.options import SweepOptions
from crisp_attention.studies.study import Configuration

DEFAULT_SPARSITY = ("0.8",)
OWN_RECIPE = {"learning_rate": float, "epochs": float}


def grid(options: SweepOptions) -> tuple[Configuration, ...]:
    """Dense, then every method at every sparsity. Raises OptionError for what is no method or no sparsity."""
    levels = sparsities(options)
    specs = ["dense"]
    for word in words(options.method):
        for spec in specs_of(word, levels):
            if spec not in specs:
                specs.append(spec)
    if len(specs) == 1:
        raise OptionError("--method and --sparsity name only dense attention: there is nothing to compare")
    recipes = [_recipe(each) for each in options.recipe]
    found = tuple(_configuration(spec, options, recipes) for spec in specs)
    for text, (target, _) in zip(options.recipe, recipes, strict=True):
        if not any(_applies(target, each.method) for each in found):
            raise OptionError(
                f"--recipe {text}: no configuration of the study is {target}; it has {_names(found)}"
            )
    for each in found:  # what cannot work is said before anything runs
        RunSpec.from_dict(plain(run_options(options, each, 0, Path("unused"))))
    return found


def words(given: Iterable[str]) -> list[str]:
    """What was separated by commas or spaces."""
    return [word for text in given for word in text.split(",") if word]


def sparsities(options: SweepOptions) -> list[float]:
    """The sparsities that were asked for. Raises OptionError for what is not in [0, 1)."""
    levels = []
    for word in words(options.sparsity or DEFAULT_SPARSITY):
        try:
            level = float(word)
        except ValueError:
            level = -1.0
        if not 0 <= level < 1:
            raise OptionError(f"--sparsity: expected numbers in [0, 1), got {word}")
        levels.append(level)
    return levels


def run_options(
    options: SweepOptions, configuration: Configuration, seed: int, output: Path
) -> FinetuneOptions:
    """The options of one run. Dense takes no part in what only sparse attention has."""
    shared: dict[str, Any] = {each.name: getattr(options, each.name) for each in fields(RecipeOptions)}
    if configuration.is_dense:
        shared |= {"attention": "self", "phase": "always", "ramp": None}
    elif options.search and configuration.schedule == "constant":
        shared |= {"ramp": None}
    return FinetuneOptions(
        **shared
        | {
            "method": configuration.method,
            "learning_rate": configuration.learning_rate,
            "epochs": configuration.epochs,
            "schedule": configuration.schedule,
            "layers": configuration.layers,
        },
        seed=seed,
        output=output,
        discard_model=not options.keep_models,
    )


def specs_of(word: str, levels: Sequence[float]) -> list[str]:
    """The method's specs at these sparsities; its own alone if it says its sparsity, or has none.

    Raises OptionError if it is no method.
    """
    try:
        return ["dense" if level == 0 else parse(word, sparsity=level).spec for level in levels]
    except (TypeError, ValueError):
        pass  # tried without them below
    try:
        return [parse(word).spec]
    except (TypeError, ValueError) as error:
        raise OptionError(f"--method {word}: {error}") from error


def _recipe(text: str) -> tuple[str, dict[str, float]]:
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
            raise OptionError(f"--recipe {text}: {key} expects a number, got {value!r}") from error
    if not own:
        raise OptionError(f"--recipe {text}: expected METHOD:learning_rate=VALUE or METHOD:epochs=VALUE")
    try:
        return (parse(":".join(target)).spec if len(target) > 1 else name), own
    except (TypeError, ValueError) as error:
        raise OptionError(f"--recipe {text}: {error}") from error


def _applies(target: str, spec: str) -> bool:
    return target in (spec, parse(spec).name)


def _configuration(
    spec: str, options: SweepOptions, recipes: list[tuple[str, dict[str, float]]]
) -> Configuration:
    own: dict[str, Any] = {"learning_rate": options.learning_rate, "epochs": options.epochs}
    for target, changes in recipes:
        if _applies(target, spec):
            own |= changes
    if spec != "dense":
        own |= {"schedule": options.schedule, "layers": options.layers}
    return Configuration(spec, **own)


def _names(configurations: Iterable[Configuration]) -> str:
    return ", ".join(each.method for each in configurations)
