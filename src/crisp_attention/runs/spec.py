"""One run as values: which model, on which data, with which method, trained how."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crisp_attention.errors import OptionError, did_you_mean, listed
from crisp_attention.methods.budgets import Budgets
from crisp_attention.methods.heads import PerHead, layer_method
from crisp_attention.methods.method import Method, as_method
from crisp_attention.methods.rules.topk import TopK
from crisp_attention.runs.task.metrics import NAMES
from crisp_attention.runs.treatment import ModelTreatment, treatment_from_dict
from crisp_attention.schedule import Schedule

if TYPE_CHECKING:
    from datasets import DatasetDict

ATTENTION = ("self", "cross", "all")
PHASES = ("always", "train", "eval")
REPORT_TO = ("none", "tensorboard", "mlflow", "wandb")
SEEDS = 2**32  # as numpy accepts them
AnyMethod = Method | PerHead | Budgets


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained: with AdamW and a linearly decaying learning rate, unless `training` says otherwise.

    Parameters
    ----------
    epochs
        Passes over the training examples.
    batch_size
        Examples per training step and device.
    learning_rate
        The peak learning rate.
    max_length
        For text: longer ones are cut to this many tokens. None for 128.
    training
        Any other fields of `transformers.TrainingArguments`, as values or as the command line writes them.
    report_to
        ``"none"``, ``"tensorboard"``, ``"mlflow"`` or ``"wandb"``.

    Raises
    ------
    OptionError
        For a number that is out of range.

    Examples
    --------
    >>> Recipe(epochs=1, training={"weight_decay": 0.01}).training
    {'weight_decay': '0.01'}
    """

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 2e-5
    max_length: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)
    report_to: str = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < math.inf:
                raise OptionError(f"{name} must be positive and finite, got {value!r}", name)
        _at_least(1, "batch_size", self.batch_size)
        _at_least(1, "max_length", self.max_length)
        _one_of(REPORT_TO, "report_to", self.report_to)
        if not isinstance(self.training, Mapping):
            raise OptionError(
                f"training must be a mapping, such as {{'weight_decay': 0.01}}, got {self.training!r}",
                "training",
            )
        # one way of writing a value, so that 0.01 and "0.01" are the same run
        object.__setattr__(self, "training", {key: _word(value) for key, value in self.training.items()})

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Recipe":
        """The recipe in what `asdict` made of one, or among the options that a file holds; others are passed over."""
        own = _own(Recipe, data)
        if not isinstance(pairs := own.get("training", {}), Mapping):
            own["training"] = dict(map(_pair, pairs))
        return Recipe(**own)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model is trained on.

    Parameters
    ----------
    source
        A hub id (``id:configuration`` where it has several), a file or a folder of files, ``builtin:digits``, or a
        DatasetDict.
    revision
        For a data set of the Hub: the branch, tag or commit to read. None for its newest.
    text_columns, image_column, label_column
        Columns, where they are not to be detected.
    train_examples
        Train on this many examples, the same ones for every seed. None for all.
    classes
        Train on the examples of these classes alone, by name or number, and judge runs by the accuracy on them. None
        of them are all.
    draw_classes
        In place of `classes`: how many, drawn anew for every seed.

    Examples
    --------
    >>> Data(source="reviews.csv", text_columns=["title", "text"]).text_columns
    ('title', 'text')
    """

    source: "str | Path | DatasetDict"
    revision: str | None = None
    text_columns: tuple[str, ...] = ()
    image_column: str | None = None
    label_column: str | None = None
    train_examples: int | None = None
    classes: tuple[str | int, ...] = ()
    draw_classes: int | None = None

    def __post_init__(self) -> None:
        _at_least(1, "train_examples", self.train_examples)
        _at_least(1, "draw_classes", self.draw_classes)
        if "" in _words("classes", self.classes):
            raise OptionError(
                f"classes must be names or numbers, got an empty one: {listed(map(repr, self.classes))}",
                "classes",
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.classes and self.draw_classes is not None:
            raise OptionError(
                "draw_classes cannot be combined with classes, which names them", "draw_classes"
            )
        object.__setattr__(self, "text_columns", _words("text_columns", self.text_columns))
        if isinstance(self.source, Path):
            object.__setattr__(self, "source", str(self.source))

    @property
    def has_classes(self) -> bool:
        """Whether it is for some classes alone."""
        return bool(self.classes) or self.draw_classes is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; `from_dict` is the inverse."""
        return asdict(self) | {"text_columns": list(self.text_columns), "classes": list(self.classes)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Data":
        """The data in what `asdict` made of it, or among the options that a file holds; others are passed over."""
        own = _own(Data, data)
        return Data(**({"source": data["dataset"]} if "dataset" in data else {}), **own)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: everything that decides its numbers.

    Parameters
    ----------
    model
        A hub id, the folder of a model or of a run, ``builtin:minilm`` or ``builtin:vit``.
    data
        What it is trained on.
    method
        A method, a method for every head, or budgets for every layer and head. A rule or a layout alone stands for
        the method with it; `Method()` is dense attention.
    layers, attention, phase
        As in `crisp.sparsify`; no layers are all.
    schedule
        How the sparsity rises to that of the method; None for the same sparsity from the start.
    recipe
        How it is trained.
    seed
        Of the classifier's initial weights, the order of examples, dropout and random keys.
    metric
        By which runs are judged, such as ``"mcc"``; None for the main one of the task.
    treatment
        What is done to the model before it is trained, besides its attention; None for nothing.

    Raises
    ------
    OptionError
        For values that are out of range or do not fit together.

    Examples
    --------
    >>> spec = RunSpec(model="bert-base-uncased", data=Data(source="nyu-mll/glue:cola"), method=TopK(0.8))
    >>> spec.method.spec
    'topk:sparsity=0.8'
    >>> RunSpec.from_dict(spec.to_dict()) == spec
    True
    """

    model: str
    data: Data
    method: AnyMethod = field(default_factory=lambda: Method(rule=TopK()))
    layers: tuple[str, ...] = ()
    attention: str = "self"
    phase: str = "always"
    schedule: Schedule | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    metric: str | None = None
    treatment: ModelTreatment | None = None

    def __post_init__(self) -> None:
        method: Any = self.method
        if isinstance(method, Budgets):
            method = Budgets(method.methods)  # what they are expected to keep decides nothing
        elif not isinstance(method, PerHead):
            method = as_method(method)
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "layers", _words("layers", self.layers))
        _one_of(ATTENTION, "attention", self.attention)
        _one_of(PHASES, "phase", self.phase)
        if self.metric is not None:
            _one_of(NAMES, "metric", self.metric)
        if not isinstance(self.seed, Integral) or not 0 <= self.seed < SEEDS:
            raise OptionError(f"seed must be a whole number in 0 to {SEEDS - 1}, got {self.seed!r}", "seed")
        for name, default in (("layers", ()), ("attention", "self"), ("phase", "always")):
            if getattr(self, name) == default:
                continue
            if self.is_dense:
                raise OptionError(f"{name} has no meaning with dense attention", name)
            if isinstance(method, Budgets) and name != "phase":
                raise OptionError(
                    f"{name} cannot be combined with budgets, which set every layer and head", name
                )
        if self.schedule is not None:
            _check_schedule(self.schedule, method)

    @property
    def is_dense(self) -> bool:
        """Whether the model keeps its own attention."""
        return self.method == Method()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; `from_dict` is the inverse.

        Raises
        ------
        TypeError
            If the data are in memory: a run's folder holds where they are.
        """
        if not isinstance(self.data.source, str):
            raise TypeError(
                "a run is recorded with the place of its data; save the DatasetDict and give its folder"
            )
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {
            "data": self.data.to_dict(),
            "method": method_to_dict(self.method),
            "layers": list(self.layers),
            "schedule": None if self.schedule is None else asdict(self.schedule),
            "recipe": asdict(self.recipe),
            "treatment": None if self.treatment is None else self.treatment.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "RunSpec":
        """The run that `to_dict` wrote.

        Raises
        ------
        OptionError
            For values that do not fit together.
        """
        own = _own(RunSpec, data)
        schedule, treatment = data.get("schedule"), data.get("treatment")
        return RunSpec(
            **own
            | {
                "data": Data.from_dict(data["data"]),
                "method": method_from_dict(data["method"]),
                "schedule": None if schedule is None else Schedule(**schedule),
                "recipe": Recipe.from_dict(data["recipe"]),
                "treatment": None if treatment is None else treatment_from_dict(treatment),
            }
        )

    def differences(self, before: "RunSpec") -> str:
        """What differs from before, each with both values; empty if nothing does."""
        pairs = _pairs(before._named(), self._named())
        theirs, ours = before.treatment, self.treatment
        if theirs is None or ours is None or type(theirs) is not type(ours):
            pairs.append(("treatment", theirs, ours))
        else:
            pairs += _pairs(theirs.named(), ours.named())
        return "; ".join(
            f"{name} was {_shown(then)}, is {'other ' * (_shown(now) == _shown(then))}{_shown(now)}"
            for name, then, now in pairs
            if now != then
        )

    def _named(self) -> dict[str, Any]:
        """Values by the names that a user gives them, without the treatment's; where a run is logged does not count."""
        data, recipe, rise = asdict(self.data), asdict(self.recipe), self.schedule
        recipe["training"] = [f"{key}={value}" for key, value in sorted(self.recipe.training.items())]
        if self.treatment is not None:
            recipe["epochs"] = f"{float(self.recipe.epochs)} in all"
        del recipe["report_to"]
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        own |= {
            "schedule": rise.shape if rise else "constant",
            "ramp": (rise.begin, rise.end) if rise else None,
            "initial": rise.initial if rise else 0.0,
        }
        return own | {"data": data.pop("source")} | data | {"recipe": None, "treatment": None} | recipe


def method_to_dict(method: AnyMethod) -> dict[str, Any]:
    """A method or budgets in plain values."""
    if isinstance(method, Budgets):
        return {"layers": {name: each.to_dict() for name, each in method.methods.items()}}
    return method.to_dict()


def method_from_dict(data: Mapping[str, Any]) -> AnyMethod:
    """The inverse of `method_to_dict`. Raises ValueError for anything it does not know."""
    if isinstance(data, Mapping) and set(data) == {"layers"}:
        return Budgets({name: layer_method(each) for name, each in data["layers"].items()})
    return layer_method(data)


def _check_schedule(schedule: Schedule, method: AnyMethod) -> None:
    if (sparsity := one_sparsity(method)) != schedule.final:
        raise OptionError(
            f"schedule must end at the method's sparsity, {sparsity:g}; its final sparsity is {schedule.final:g}",
            "schedule",
        )


def one_sparsity(method: AnyMethod) -> float:
    """The sparsity that a schedule ends at. Raises OptionError where a method has none, or many."""
    if isinstance(method, Budgets):
        raise OptionError("schedule sets one sparsity everywhere; budgets have many", "schedule")
    if method.sparsity is None:
        raise OptionError(f"schedule needs a method with one sparsity, got {method.spec}", "schedule")
    return method.sparsity


def _own(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: data[each.name] for each in fields(kind) if each.name in data}


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise OptionError(f"training expects KEY=VALUE, got {text!r}", "training")
    return key, value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)


def _words(name: str, values: Sequence[Any]) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise OptionError(f"{name} must be a list or another sequence, got {values!r}", name)
    return tuple(map(str, values))


def _pairs(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, then[name], now[name]) for name in now]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "given" if value else "not given"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "not given"
    if isinstance(value, Method | PerHead | ModelTreatment):
        return value.spec
    if isinstance(value, Budgets):
        return f"budgets of {len(value.methods)} layer{'s' * (len(value.methods) != 1)}"
    return "not given" if value is None else str(value)


def _at_least(least: int, name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, Integral) or value < least):
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}", name)


def _one_of(choices: Sequence[str], name: str, value: str) -> None:
    if value not in choices:
        close = did_you_mean(str(value), choices)
        raise OptionError(f"{name} must be one of {', '.join(choices)}; got {value!r}{close}", name)
