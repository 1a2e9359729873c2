"""What the options of a run say about sparsity, and applying it."""

from typing import Any

from transformers import PreTrainedModel

from crisp_attention.errors import OptionError
from crisp_attention.methods.budgets import Budgets, budgets
from crisp_attention.methods.method import Method
from crisp_attention.methods.spec import parse
from crisp_attention.models.apply import sparsify
from crisp_attention.models.settings import settings_of
from crisp_attention.runs.options import FinetuneOptions
from crisp_attention.schedule import Schedule

RAMP = (0.0, 0.5)  # fractions of training


def method_of(options: FinetuneOptions) -> Method | Budgets:
    """The method, or the budgets, that the options name. Raises OptionError for what does not fit together."""
    if options.budgets is not None:
        for flag, given in (
            ("--method", options.method is not None),
            ("--sparsity", options.sparsity is not None),
            ("--layers", bool(options.layers)),
            ("--attention", options.attention != "self"),
        ):
            if given:
                raise OptionError(f"--budgets says it for every layer and head; leave {flag} out")
        try:
            return budgets(options.budgets)
        except ValueError as error:
            raise OptionError(f"--budgets: {error}") from error
    spec = options.method or "topk"
    try:
        method = parse(spec, sparsity=options.sparsity)
    except (TypeError, ValueError) as error:
        raise OptionError(f"--method {spec}: {error}") from error
    for flag, changed in (
        ("--layers", bool(options.layers)),
        ("--phase", options.phase != "always"),
        ("--attention", options.attention != "self"),
    ):
        if changed and method == Method():
            raise OptionError(f"{flag} has no meaning with --method dense")
    return method


def schedule_of(options: FinetuneOptions, method: Method | Budgets) -> Schedule | None:
    """The sparsity schedule that the options name, None for a constant sparsity."""
    if options.schedule == "constant":
        if options.ramp is not None:
            raise OptionError("--ramp needs a --schedule that rises: linear, cosine or cubic")
        return None
    if isinstance(method, Budgets):
        raise OptionError(f"--schedule {options.schedule} sets one sparsity everywhere; --budgets has many")
    if method.sparsity is None:
        raise OptionError(
            f"--schedule {options.schedule} needs a method with one sparsity, got {method.spec}"
        )
    begin, end = options.ramp or RAMP
    try:
        return Schedule(final=method.sparsity, shape=options.schedule, begin=begin, end=end)
    except ValueError as error:
        raise OptionError(f"--ramp: {error}") from error


def make_sparse(model: PreTrainedModel, method: Method | Budgets, options: FinetuneOptions) -> None:
    """Apply the method. A dense run keeps the model's own attention, the honest baseline for time.

    Raises OptionError if the model is not supported or a layer does not exist.
    """
    if method == Method():
        return
    try:
        sparsify(
            model, method, layers=options.layers or None, phase=options.phase, attention=options.attention
        )
    except (TypeError, ValueError) as error:
        flag = "--layers: " if options.layers else "--budgets: " if options.budgets else ""
        raise OptionError(f"{flag}{error}") from error


def recorded(method: Method | Budgets) -> dict[str, Any]:
    """The method as the run directory keeps it, in plain values."""
    if isinstance(method, Budgets):
        return {"layers": {name: each.to_dict() for name, each in method.methods.items()}}
    return method.to_dict()


def described(model: PreTrainedModel, method: Method | Budgets, schedule: Schedule | None, phase: str) -> str:
    """One sentence for the user: which attention the model has now."""
    settings = [each for _, each in settings_of(model)]
    if not settings:
        return "attention: dense, the model's own"
    sparse = [each for each in settings if each.method is not None]
    parts = ["budgets by layer and head" if isinstance(method, Budgets) else method.spec]
    if schedule:
        parts.append(
            f"sparsity {schedule.initial:g} to {schedule.final:g} ({schedule.shape}, "
            f"from {schedule.begin:.0%} to {schedule.end:.0%} of training)"
        )
    if phase != "always":
        parts.append({"train": "in training only", "eval": "in evaluation only"}[phase])
    return f"attention: {', '.join(parts)}, in {len(sparse)} of {len(settings)} layers"
