"""What is done to a model: the interface between sweeps, statistics and reports and kinds of sparsity."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import TrainerCallback, TrainingArguments

    from crisp_attention.runs.sources import Source
    from crisp_attention.runs.spec import RunSpec
    from crisp_attention.runs.task import Task

KINDS: dict[str, type["Treatment"]] = {}
# where our own kinds are defined, for files that name one before anything has imported it
HOMES = {
    "attention": "crisp_attention.studies.attention",
    "pruning": "crisp_attention.runs.pruning.treatment",
}


class Treatment(ABC):
    """What the configurations of a study differ in: frozen dataclasses with `kind` in their own body.

    Attributes
    ----------
    kind
        Its name in files; a class can be read back wherever it has been imported.
    words
        What it drops, in prose: ``"keys"``, ``"weights"``.
    control_words
        What its control has in place of a choice: ``"random keys"``.
    question
        What a study of it asks.
    """

    kind: ClassVar[str]
    words: ClassVar[str]
    control_words: ClassVar[str] = "a random choice"
    question: ClassVar[str] = "Does sparsity help here?"

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if (kind := vars(cls).get("kind")) is None:
            return
        other = KINDS.get(kind)
        if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two kinds of treatment are called {kind!r}: {other!r} and {cls!r}")
        KINDS[kind] = cls

    @property
    @abstractmethod
    def spec(self) -> str:
        """Its name and options in one word, such as ``topk:sparsity=0.8``; no two in a study have the same."""

    @property
    @abstractmethod
    def sparsity(self) -> float | None:
        """The target sparsity, in [0, 1); None where it has no single one."""

    @abstractmethod
    def at(self, sparsity: float) -> Self:
        """The same at another sparsity. Raises ValueError where it has no single one."""

    def control(self) -> "Treatment | None":
        """The control that drops as much at random; None if there is none."""
        return None

    @abstractmethod
    def run(self, base: "RunSpec") -> "RunSpec":
        """The run that has this treatment and is otherwise like `base`, a dense one."""

    @property
    def name(self) -> str:
        """The name without options: ``topk``."""
        return self.spec.partition(":")[0]

    @property
    def series(self) -> str:
        """The spec without the sparsity: what the same treatment at several sparsities has in common."""
        return re.sub(r":sparsity=[^:+]*", "", self.spec)

    @property
    def series_label(self) -> str:
        """For display: the label without the sparsity."""
        return self.series

    @property
    def label(self) -> str:
        """For display: ``topk 80 %``, or the spec where it has more options than a sparsity."""
        if self.spec != f"{self.name}:sparsity={self.sparsity}":
            return self.spec
        return f"{self.name} {100 * (self.sparsity or 0):.3g} %"

    @property
    def is_dense(self) -> bool:
        """Whether it does nothing: the baseline of a study."""
        return False

    @property
    def is_control(self) -> bool:
        """Whether it drops at random."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold, for `treatment_from_dict`."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Treatment":
        """The inverse of `to_dict`, without the kind."""
        return cls(**data)


class ModelTreatment(Treatment):
    """A treatment of the model itself, once, before it is trained: its weights, for example.

    A subclass is a frozen dataclass with `kind`, `words`, `spec`, `sparsity`, `at`, `apply` and `measure`;
    `crisp.sweep` takes it among its methods.

    Examples
    --------
    >>> from dataclasses import dataclass, replace
    >>> @dataclass(frozen=True)
    ... class Drop(ModelTreatment):
    ...     sparsity: float = 0.5
    ...     kind = "drop"
    ...     words = "weights"
    ...     spec = property(lambda self: f"drop:sparsity={self.sparsity}")
    ...
    ...     def at(self, sparsity):
    ...         return replace(self, sparsity=sparsity)
    ...
    ...     def apply(self, model):
    ...         ...
    ...
    ...     def measure(self, model):
    ...         ...
    >>> Drop(0.8).label
    'drop 80 %'
    """

    @abstractmethod
    def apply(self, model: "nn.Module") -> None:
        """Change the model in place; whatever training must leave unchanged, such as zeros, is kept by hooks on it."""

    def callbacks(
        self, source: "Source", task: "Task", arguments: "TrainingArguments"
    ) -> "Sequence[TrainerCallback]":
        """What takes part in training; `task` is the encoded one. Nothing by default."""
        return ()

    def named(self) -> dict[str, Any]:
        """Its values by the names that a user gives them, for what is said of two that differ."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def checkpoint_files(self) -> tuple[str, ...]:
        """Files that a checkpoint must have to be continued from, besides those of every run."""
        return ()

    @abstractmethod
    def measure(self, model: "nn.Module") -> "pd.DataFrame":
        """The sparsity that the trained model has: one row per layer with ``layer``, ``name``,
        ``sparsity`` and, if they count differently, ``weights``."""

    def run(self, base: "RunSpec") -> "RunSpec":
        return replace(base, treatment=self)


def treatment_from_dict(data: Mapping[str, Any]) -> Treatment:
    """The treatment that `to_dict` describes. Raises ValueError for a kind that no imported class has."""
    if (kind := data["kind"]) not in KINDS and kind in HOMES:
        import_module(HOMES[kind])
    if kind not in KINDS:
        known = ", ".join(dict.fromkeys([*HOMES, *KINDS]))
        raise ValueError(
            f"unknown kind of treatment {kind!r}; import the class that defines it. Known: {known}"
        )
    return KINDS[kind].from_dict({key: value for key, value in data.items() if key != "kind"})
