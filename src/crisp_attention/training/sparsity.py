"""What the options of a run say about sparsity, and applying it."""

from transformers import PreTrainedModel

from crisp_attention.methods import Method, parse
from crisp_attention.models.apply import sparsify
from crisp_attention.models.settings import settings_of
from crisp_attention.schedule import Schedule
from crisp_attention.training.options import FinetuneOptions, OptionError


def method_of(options: FinetuneOptions) -> Method:
    """The method that the options name. Raises OptionError for what does not fit together."""
    given = {"sparsity": options.sparsity, "width": options.width, "global_tokens": options.global_tokens}
    try:
        method = parse(options.method, **{name: value for name, value in given.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise OptionError(f"--method {options.method}: {error}") from error
    for flag, changed in (
        ("--layers", bool(options.layers)),
        ("--phase", options.phase != "always"),
        ("--attention", options.attention != "self"),
    ):
        if changed and method == Method():
            raise OptionError(f"{flag} has no meaning with --method dense")
    return method


def schedule_of(options: FinetuneOptions, method: Method) -> Schedule | None:
    """The sparsity schedule that the options name, None for a constant sparsity."""
    if options.schedule == "constant":
        if options.ramp is not None:
            raise OptionError("--ramp needs a --schedule that rises: linear, cosine or cubic")
        return None
    if method.sparsity is None:
        raise OptionError(f"--schedule {options.schedule} needs a method with a sparsity, got {method.name}")
    begin, end = options.ramp or (0.0, 0.5)
    try:
        return Schedule(final=method.sparsity, shape=options.schedule, begin=begin, end=end)
    except ValueError as error:
        raise OptionError(f"--ramp: {error}") from error


def make_sparse(model: PreTrainedModel, method: Method, options: FinetuneOptions) -> None:
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
        flag = "--layers: " if options.layers else ""
        raise OptionError(f"{flag}{error}") from error


def described(model: PreTrainedModel, method: Method, schedule: Schedule | None, phase: str) -> str:
    """One sentence for the user: which attention the model has now."""
    settings = [each for _, each in settings_of(model)]
    if not settings:
        return "attention: dense, the model's own"
    sparse = [each for each in settings if each.method is not None]
    parts = [method.name]
    if schedule:
        parts.append(
            f"sparsity {schedule.initial:g} to {schedule.final:g} ({schedule.shape}, "
            f"from {schedule.begin:.0%} to {schedule.end:.0%} of training)"
        )
    elif method.sparsity is not None:
        parts.append(f"sparsity {method.sparsity:g}")
    if phase != "always":
        parts.append({"train": "in training only", "eval": "in evaluation only"}[phase])
    return f"attention: {', '.join(parts)}, in {len(sparse)} of {len(settings)} layers"
