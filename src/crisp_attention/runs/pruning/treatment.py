"""Pruning as a treatment: what a configuration of a study does to the weights of its model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from crisp_attention.errors import OptionError
from crisp_attention.methods.checks import check_number, check_one_of, check_whole
from crisp_attention.pruning.patterns import Pattern
from crisp_attention.pruning.saliency import SALIENCIES
from crisp_attention.pruning.selection import NORMALISED, check_zeros
from crisp_attention.pruning.steps import groups_of
from crisp_attention.pruning.straight_through import ESTIMATORS
from crisp_attention.runs.treatment import ModelTreatment
from crisp_attention.schedule import SHAPES

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import TrainingArguments

    from crisp_attention.pruning.matrices import Matrix
    from crisp_attention.runs.pruning.callback import PruningCallback
    from crisp_attention.runs.sources import Source
    from crisp_attention.runs.task import Task

GRADIENTS = ("classes", "all", "random")
NAME = "prune"
NONE = "none"
DENSE_WEIGHTS = "pruning.safetensors"  # in a checkpoint, with ste


@dataclass(frozen=True, kw_only=True)
class Pruning(ModelTreatment):
    """Weights are pruned in steps, each followed by training.

    Parameters
    ----------
    sparsity
        The share of zeros among the weights of all layers that are pruned. None where kinds of layers have their own.
    attention, feed_forward, convolution
        In its place: the share in each kind of layer; kinds without one are left as they are.
    pattern
        At most N of each M neighbouring inputs, "2:4"; "none" for blocks alone.
    block_size
        Of square blocks that are kept or pruned whole: 8, 16, 32 or 64; 0 for N:M alone.
    steps
        How often there is pruning, with as much training after each.
    shape
        How the sparsity rises from step to step, from that of N:M alone: "linear", "cosine", "cubic" or "constant".
    saliency
        "taylor", "signed" or "magnitude", as in `crisp_attention.pruning.step`.
    gradients
        Of which examples: of the user's "classes" (class-aware), of "all" classes, or of as many "random" other
        classes, the control.
    examples
        How many training examples gradients are taken on, the same ones at each step; all if there are fewer.
    normalised, score_kept, ste, skip
        As in `crisp_attention.pruning.step`.

    Examples
    --------
    >>> Pruning(sparsity=0.75).spec
    'prune:sparsity=0.75'
    >>> Pruning(sparsity=0.75).control().label
    'pruned 75 %, gradients of random classes'
    """

    sparsity: float | None = None
    attention: float | None = None
    feed_forward: float | None = None
    convolution: float | None = None
    pattern: str = "2:4"
    block_size: int = 32
    steps: int = 5
    shape: str = "linear"
    saliency: str = "taylor"
    gradients: str = "classes"
    examples: int = 512
    normalised: str = "sum"
    score_kept: bool = False
    ste: str = "none"
    skip: tuple[str, ...] = ()
    kind: ClassVar[str] = "pruning"
    words: ClassVar[str] = "weights"
    control_words: ClassVar[str] = "gradients of random classes"
    question: ClassVar[str] = "What does pruning cost here?"

    def __post_init__(self) -> None:
        own = self.by_kind
        if (self.sparsity is None) == (not own):
            raise ValueError(
                "expected sparsity, or a share for attention, feed_forward or convolution, not both"
            )
        for name, share in own.items() if own else [("sparsity", self.sparsity)]:
            check_number(name, share, "[0, 1)")
        check_whole("steps", self.steps, 1)
        check_whole("examples", self.examples, 1)
        for name, known in (
            ("shape", tuple(SHAPES)),
            ("saliency", SALIENCIES),
            ("gradients", GRADIENTS),
            ("normalised", NORMALISED),
            ("ste", ESTIMATORS),
        ):
            check_one_of(name, getattr(self, name), known)
        if not isinstance(self.pattern, str):
            raise TypeError(f"pattern must be text such as '2:4', or 'none', got {self.pattern!r}")
        if not isinstance(self.score_kept, bool):
            raise TypeError(f"score_kept must be True or False, got {self.score_kept!r}")
        if not isinstance(self.skip, list | tuple) or not all(isinstance(each, str) for each in self.skip):
            raise TypeError(
                f"skip must be a sequence of patterns of names, such as ['*.layer.0.*'], got {self.skip!r}"
            )
        object.__setattr__(self, "skip", tuple(self.skip))
        check_whole("block_size", self.block_size, 0)
        self.zeros  # noqa: B018, raises ValueError
        self._check_meaning()

    @classmethod
    def parse(cls, text: str, sparsity: float | None = None) -> "Pruning":
        """From a spec such as ``prune:gradients=all:pattern=1:4``. Raises ValueError for what it cannot be."""
        name, *settings = re.split(r":(?=[a-z_]+=)", text)
        if name != NAME:
            raise ValueError(f"there is no treatment {name!r}; expected {NAME!r}")
        known = {each.name: each for each in fields(cls)}
        given: dict[str, Any] = {}
        for setting in settings:
            key, _, value = setting.partition("=")
            if key not in known:
                raise ValueError(f"{NAME} has no option {key!r}; it has {', '.join(known)}")
            given[key] = _value(key, value, known[key].default)
        alone = sparsity is not None and not given.keys() & {"sparsity", *KIND_FIELDS}
        if alone:
            given["sparsity"] = sparsity
        return cls(**given)

    @property
    def zeros(self) -> Pattern:
        """Which zeros are allowed."""
        return Pattern.parse(None if self.pattern == NONE else self.pattern, self.block_size or None)

    def _check_meaning(self) -> None:
        """Raise ValueError for an option that nothing would follow, next to the others."""
        blocks, groups = self.zeros.block_size is not None, self.zeros.has_groups
        for names, ignored, why in (
            (
                ("gradients", "examples"),
                self.saliency == "magnitude",
                "saliency 'magnitude', which looks at no example",
            ),
            (("normalised", "score_kept"), not blocks, "block_size 0, as no block is scored"),
            (("score_kept",), not groups, "pattern 'none', which keeps whole blocks"),
            (("shape",), not blocks or self.steps == 1, "a single share of zeros: one step, or N:M alone"),
        ):
            for each in fields(self):
                if ignored and each.name in names and getattr(self, each.name) != each.default:
                    raise ValueError(
                        f"{each.name} {_written(getattr(self, each.name))} has no meaning with {why}"
                    )

    def matrices(self, model: "nn.Module") -> "list[tuple[list[Matrix], float]]":
        """What is pruned of a model, and to which shares. Raises ValueError for a target out of reach."""
        return groups_of(model, self.target, self.zeros, self.skip)

    def pruned(self, model: "nn.Module") -> "list[Matrix]":
        """What is pruned of a model, whatever its share."""
        return [each for group, _ in self.matrices(model) for each in group]

    @property
    def by_kind(self) -> dict[str, float]:
        """The shares of kinds of layers, by the names of `pruning.matrices.KINDS`."""
        shares = {name: getattr(self, name) for name in KIND_FIELDS}
        return {name.replace("_", "-"): share for name, share in shares.items() if share is not None}

    @property
    def target(self) -> float | Mapping[str, float]:
        """What `pruning.step` is given at the end."""
        return self.by_kind if self.sparsity is None else self.sparsity

    def named(self) -> dict[str, Any]:
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"target": own.pop("sparsity"), **own}

    @property
    def spec(self) -> str:
        changed = [each for each in fields(self) if getattr(self, each.name) != each.default]
        return ":".join([NAME, *(f"{each.name}={_written(getattr(self, each.name))}" for each in changed)])

    @property
    def label(self) -> str:
        shares = [f"{name} {100 * share:.3g} %" for name, share in self.by_kind.items()]
        return self._labelled(f"pruned {' and '.join(shares) or f'{100 * (self.sparsity or 0):.3g} %'}")

    @property
    def series_label(self) -> str:
        return self.label if self.by_kind else self._labelled("pruned")

    def _labelled(self, first: str) -> str:
        parts = [first]
        if self.saliency != "taylor":
            parts.append({"signed": "signed Taylor", "magnitude": "magnitude"}[self.saliency])
        if self.gradients != "classes":
            parts.append(f"gradients of {self.gradients} classes")
        if self.pattern != "2:4" or self.block_size != 32:
            parts.append(str(self.zeros))
        shown = {"sparsity", *KIND_FIELDS, "saliency", "gradients", "pattern", "block_size"}
        others = [each for each in fields(self) if each.name not in shown]
        parts += [
            f"{each.name}={_written(getattr(self, each.name))}"
            for each in others
            if getattr(self, each.name) != each.default
        ]
        return ", ".join(parts)

    @property
    def is_control(self) -> bool:
        return self.gradients == "random"

    def at(self, sparsity: float) -> "Pruning":
        if self.sparsity is None:
            raise ValueError(f"{self.spec} has a sparsity for each kind of layer")
        return replace(self, sparsity=sparsity)

    def control(self) -> "Pruning | None":
        """The same with gradients of other classes."""
        if self.gradients != "classes" or self.saliency == "magnitude":
            return None
        return replace(self, gradients="random")

    def apply(self, model: "nn.Module") -> None:
        """Nothing yet: pruning is part of training. Raises ValueError for a target out of reach."""
        for group, share in self.matrices(model):
            check_zeros(group, self.zeros, share)

    def callbacks(
        self, source: "Source", task: "Task", arguments: "TrainingArguments"
    ) -> "Sequence[PruningCallback]":
        """What prunes during training. Raises OptionError for arguments under which zeros would not stay."""
        from crisp_attention.runs.pruning.callback import PruningCallback, calibration

        if arguments.load_best_model_at_end:
            raise OptionError(
                "training load_best_model_at_end has no meaning with pruning: earlier checkpoints have fewer zeros",
                "training",
            )
        if str(getattr(arguments.optim, "value", arguments.optim)).startswith("schedule_free"):
            raise OptionError(
                "training optim: schedule-free optimizers write weights outside of their steps, so that zeros would "
                "not stay; expected another",
                "training",
            )
        return [PruningCallback(self, calibration(self, source, task, arguments.seed))]

    @property
    def checkpoint_files(self) -> tuple[str, ...]:
        return () if self.ste == NONE else (DENSE_WEIGHTS,)

    def measure(self, model: "nn.Module") -> "pd.DataFrame":
        """One row per layer that is pruned, with its kind and number of weights."""
        import pandas as pd

        found = self.pruned(model)
        rows = [
            {
                "layer": number,
                "name": each.name,
                "kind": each.kind,
                "weights": each.weight.numel(),
                "sparsity": float((each.weight == 0).float().mean()),
            }
            for number, each in enumerate(found)
        ]
        return pd.DataFrame(rows)


KIND_FIELDS = ("attention", "feed_forward", "convolution")


def _value(key: str, text: str, default: Any) -> Any:
    if key == "skip":
        return tuple(text.split("|"))
    if isinstance(default, bool):
        check_one_of(key, text, ("true", "false"))
        return text == "true"
    if isinstance(default, str):
        return text
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError as error:
        raise ValueError(f"{key} expects a number, got {text!r}") from error


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "|".join(value) if isinstance(value, tuple) else str(value)
