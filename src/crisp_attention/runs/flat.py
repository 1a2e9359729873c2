"""Values from flat options, as the command line and the files of older versions have them."""

from collections.abc import Mapping
from typing import Any

from crisp_attention.errors import OptionError
from crisp_attention.methods.budgets import budgets
from crisp_attention.methods.rules.topk import TopK
from crisp_attention.methods.spec import parse
from crisp_attention.runs.spec import AnyMethod, Data, Recipe, RunSpec, method_from_dict, one_sparsity
from crisp_attention.schedule import Schedule

RAMP = (0.0, 0.5)  # fractions of training
OWN = ("model", "layers", "attention", "phase", "seed", "metric")  # the same in a RunSpec


def spec_of(options: Mapping[str, Any]) -> RunSpec:
    """The run that flat options describe; keys that are not options of a run are ignored.

    They name the data `dataset`, have the method as a spec with a `sparsity`, or `budgets` as the path of a file, and a
    `schedule` by its shape with a `ramp`. Raises OptionError for an invalid method or schedule, and for values that
    do not fit together.
    """
    method = _method(options)
    schedule = schedule_to(method, options.get("schedule"), options.get("ramp"))
    return RunSpec(
        method=method,
        schedule=schedule,
        data=Data.from_dict(options),
        recipe=Recipe.from_dict(options),
        **{name: options[name] for name in OWN if name in options},
    )


def schedule_to(
    method: AnyMethod, shape: str | None, ramp: tuple[float, float] | None = None
) -> Schedule | None:
    """The schedule of that shape to the method's sparsity, over `ramp` of training; None for a constant one.

    Raises OptionError where that cannot be.
    """
    shape = shape or "constant"
    if shape == "constant":
        if ramp is not None:
            raise OptionError("ramp needs a schedule that rises: linear, cosine or cubic", "ramp")
        return None
    begin, end = ramp or RAMP
    try:
        return Schedule(final=one_sparsity(method), shape=shape, begin=begin, end=end)
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(str(error), "schedule" if ramp is None else "ramp") from error


def _method(options: Mapping[str, Any]) -> AnyMethod:
    spec, file = options.get("method"), options.get("budgets")
    if isinstance(spec, Mapping):
        return method_from_dict(spec)
    if file is not None:
        for name in ("method", "sparsity"):
            if options.get(name) is not None:
                raise OptionError(
                    f"{name} cannot be combined with budgets, which set every layer and head", name
                )
        try:
            return budgets(file)
        except ValueError as error:
            raise OptionError(str(error), "budgets") from error
    spec = spec or TopK.name
    try:
        return parse(spec, sparsity=options.get("sparsity"))
    except (TypeError, ValueError) as error:
        raise OptionError(f"method {spec}: {error}", "method") from error
