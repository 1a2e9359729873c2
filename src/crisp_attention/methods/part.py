"""What layouts, rules and branches have in common: options, a name of their own, parameters."""

import re
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import Tensor

from crisp_attention.methods.rows import Rows

NAME = re.compile(r"[A-Za-z_][\w-]*")


class Shape(NamedTuple):
    """An attention layer: its query heads, key and value heads, and the width of a head."""

    heads: int
    groups: int
    width: int


@dataclass(frozen=True)
class Parameter:
    """What a part needs of every layer in addition to its options.

    Parameters
    ----------
    value
        The initial value where it is trained, and the shape and dtype. Floating numbers become float32, whatever the
        default dtype is.
    trained
        Trained with the model, or else fitted beforehand by `crisp.fit` and frozen.
    per_head
        The first dimension counts the query heads, so that it can be divided among them.
    """

    value: Tensor
    trained: bool = True
    per_head: bool = True

    def __post_init__(self) -> None:
        if self.value.is_floating_point():
            object.__setattr__(self, "value", self.value.float())


# which pairs of some rows, bool (B, H, L, S), a method's rule keeps of all the valid ones
Gold = Callable[[Rows], Tensor]


class Fitter(Protocol):
    """Finds the fitted parameters of a part in one layer, from what the layer sees of some batches."""

    def see(self, rows: Rows) -> None:
        """Take in one attention call of the layer, of all its heads; calls come in their order."""

    def values(self) -> dict[str, Tensor]:
        """The parameters by name, of the shapes that `Part.parameters` says."""


class Given(Protocol):
    """The input of a part: the queries (B, H, L, D), the keys (B, G, S, D), and the layer's parameters."""

    @property
    def query(self) -> Tensor: ...
    @property
    def key(self) -> Tensor: ...
    @property
    def parameters(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Part(ABC):
    """A layout, a rule or a branch. Its dataclass fields are its options, on the command line and in saved models.

    A class registers under the `name` in its own body: specs and saved methods refer to it by that. A subclass
    without one works, but cannot be saved. Kernels are written for exact classes, so a subclass is computed by
    the reference; a layout with `blocks` or `sight` of its own by the kernels that take these.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    uses_positions: ClassVar[bool] = False
    fitted_to_rule: ClassVar[bool] = False  # crisp.fit fits it to the pairs that a rule keeps

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" in vars(cls):
            _register(cls)
        if "__repr__" not in vars(cls):  # else the decorator of dataclasses writes one
            cls.__repr__ = Part.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        # keyword-only options, such as the temperature, only where they are not at their default
        shown = [(f, getattr(self, name)) for name, f in options(type(self)).items()]
        told = [f"{f.name}={value!r}" for f, value in shown if not f.kw_only or value != f.default]
        return f"{type(self).__qualname__}({', '.join(told)})"

    def parameters(self, shape: Shape) -> Mapping[str, Parameter]:
        """What a layer of this shape holds for the part, by name; nothing for most parts."""
        return {}

    def fitter(self, shape: Shape, gold: Gold, seed: int = 0) -> Fitter | None:
        """What finds the parameters of a layer of this shape that are not trained; None for parts that have none.

        `gold` says which pairs the method's rule keeps where no layout hides any.
        It draws from `seed` alone, so that the same model, batches and seed give the same values.
        """
        return None

    def parameter(self, given: Given, name: str) -> Tensor:
        """One of the layer's `parameters`, as it is now. Raises ValueError if the layer does not hold it."""
        found = given.parameters.get(f"{self.kind}.{name}")
        if found is None:
            shape = Shape(given.query.shape[1], given.key.shape[1], given.query.shape[-1])
            trained = self.parameters(shape)[name].trained
            way = (
                "a model holds it: use crisp.sparsify" if trained else "call crisp.fit(model, batches) first"
            )
            raise ValueError(f"{called(self)!r} needs the parameter {name!r}, which this call lacks; {way}")
        return found


P = TypeVar("P", bound=Part)
_parts: dict[str, type[Part]] = {}


def options(part: type[Part]) -> dict[str, Field[Any]]:
    """The options of a class by name, those that can be given by keyword only at the end, as in calls."""
    return {f.name: f for f in sorted(fields(part), key=lambda f: bool(f.kw_only))}


def registered(kind: type[P]) -> dict[str, type[P]]:
    """The named classes of a kind, by name: the library's, and imported ones of third parties."""
    return {name: each for name, each in _parts.items() if issubclass(each, kind)}


def called(part: Part) -> str:
    """A part's name, or that of its class where the class has none of its own."""
    return part.name if "name" in vars(type(part)) else type(part).__name__


def answers(part: Part, question: str) -> bool:
    """Whether a method of a part's class can be relied on: the library's own, or one that the class's body defines.

    A derived class may compute anything, whatever its base class declares.
    """
    return is_ours(type(part)) or question in vars(type(part))


def is_ours(part: type[Part]) -> bool:
    """Whether a class is the library's own."""
    return part.__module__.startswith(f"{__package__}.")


def where(part: type[Part]) -> str:
    """Where a class can be imported from: `module:Name`."""
    return f"{part.__module__}:{part.__qualname__}"


def _register(cls: type[Part]) -> None:
    name = cls.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{where(cls)}: name must be a word of letters, digits, - and _, got {name!r}")
    other = _parts.get(name)
    # a cell of a notebook that is run again defines its class again
    if other is not None and where(other) != where(cls):
        raise ValueError(f"{where(cls)}: the name {name!r} belongs to {where(other)}; choose another")
    _parts[name] = cls
