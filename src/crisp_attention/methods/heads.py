"""A method for each head of a layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Parameter, Shape


@dataclass(frozen=True)
class PerHead:
    """One method for every head of a layer. Heads with equal methods are computed together.

    Parameters
    ----------
    methods
        A tuple with a `Method` for each head, in order.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> top, window = crisp.Method(rule=crisp.TopK(0.5)), crisp.Method(layout=crisp.Window(9))
    >>> crisp.PerHead((top, top, window)).spec
    'topk:sparsity=0.5 | window:width=9'
    """

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        if not self.methods or not all(isinstance(each, Method) for each in self.methods):
            raise TypeError(f"methods must be a tuple with one Method for each head, got {self.methods!r}")

    @property
    def name(self) -> str:
        """The methods' common name, or all their names."""
        return " | ".join(dict.fromkeys(each.name for each in self.methods))

    @property
    def spec(self) -> str:
        """The methods' specs, in order of first occurrence."""
        return " | ".join(dict.fromkeys(each.spec for each in self.methods))

    def __str__(self) -> str:
        return " | ".join(dict.fromkeys(str(each) for each in self.methods))

    @property
    def sparsity(self) -> float | None:
        """The target sparsity that all heads share, if they do."""
        return self._common("sparsity")

    @property
    def uses_positions(self) -> bool:
        """Whether any head's method needs to know where a query stands among the keys."""
        return any(each.uses_positions for each in self.methods)

    @property
    def uses_seed(self) -> bool:
        """Whether any head's method draws at random."""
        return any(each.uses_seed for each in self.methods)

    @property
    def has_branch(self) -> bool:
        """Whether a branch adds to the output, so that there are no weights to return."""
        return any(each.has_branch for each in self.methods)

    def drops_nothing(self, keys: int | None = None) -> bool:
        """Whether every head's method is dense attention for rows of at most `keys` valid keys, or of any length."""
        return all(each.drops_nothing(keys) for each in self.methods)

    @property
    def block_size(self) -> int | None:
        """Keys in a block, where all heads with blocks agree."""
        sizes = {each.block_size for each in self.methods if each.block_size}
        return sizes.pop() if len(sizes) == 1 else None

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """What a layer of this shape holds, for all heads, whether or not their method uses it.

        Raises ValueError if methods hold something different under one name.
        """
        found: dict[str, Parameter] = {}
        for method in dict.fromkeys(self.methods):
            for name, each in method.parameters(shape).items():
                other = found.setdefault(name, each)
                if other.value.shape != each.value.shape or other.trained != each.trained:
                    raise ValueError(
                        f"heads of one layer need {name} in different shapes, {tuple(other.value.shape)} "
                        f"and {tuple(each.value.shape)}"
                    )
        return found

    @property
    def has_parameters(self) -> bool:
        """Whether a layer holds parameters for it."""
        return bool(self.parameters(Shape(1, 1, 1)))

    def with_sparsity(self, sparsity: float) -> "PerHead":
        """Every head's method at another target sparsity. Raises ValueError where one has none."""
        return PerHead(tuple(each.with_sparsity(sparsity) for each in self.methods))

    def groups(self) -> dict[Method, list[int]]:
        """The heads of each different method."""
        found: dict[Method, list[int]] = {}
        for head, method in enumerate(self.methods):
            found.setdefault(method, []).append(head)
        return found

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary that JSON can hold; `layer_method` is its inverse."""
        return {"heads": [each.to_dict() for each in self.methods]}

    def _common(self, name: str) -> Any:
        values = {getattr(each, name) for each in self.methods}
        return values.pop() if len(values) == 1 else None


LayerMethod = Method | PerHead


def layer_method(data: Mapping[str, Any]) -> LayerMethod:
    """Rebuild a layer's method from its dictionary. Raises ValueError for anything it does not know."""
    if isinstance(data, Mapping) and set(data) == {"heads"}:
        if not isinstance(data["heads"], list) or not data["heads"]:
            raise ValueError(f"'heads' must be a list with a method for each head, got {data['heads']!r}")
        return per_head([Method.from_dict(each) for each in data["heads"]])
    return Method.from_dict(data)


def per_head(methods: list[Method]) -> LayerMethod:
    """A layer's method from those of its heads: a plain `Method` if all are equal."""
    return methods[0] if len(set(methods)) == 1 else PerHead(tuple(methods))
