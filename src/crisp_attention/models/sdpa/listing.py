"""`crisp.attention_modules(model)`: what of a model can be made sparse."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from crisp_attention.models.host import AttentionLayer, host_of
from crisp_attention.models.sdpa.finding import SEEN, Seen, look
from crisp_attention.models.sdpa.host import unwrapped
from crisp_attention.tables import as_html, as_text


@dataclass(frozen=True)
class AttentionModule:
    """One attention module: its number and name in the model, and its class.

    heads, groups and width are those of queries, keys and a head, None where the module does not say; queries and keys
    are the lengths that it was called with, None without a pass.
    """

    index: int
    name: str
    kind: str
    cross: bool
    heads: int | None = None
    groups: int | None = None
    width: int | None = None
    queries: int | None = None
    keys: int | None = None


@dataclass(frozen=True, repr=False)
class AttentionModules:
    """The attention modules of a model, in order; printed as a table."""

    modules: tuple[AttentionModule, ...]

    def __iter__(self) -> Iterator[AttentionModule]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __repr__(self) -> str:
        return as_text(*self._shown())

    def _repr_html_(self) -> str:
        return as_html(*self._shown())

    def _shown(self) -> tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]:
        def cell(value: int | None) -> str:
            return "" if value is None else str(value)

        rows = [
            (cell(m.index), cell(m.heads), cell(m.width), cell(m.queries), cell(m.keys),
             "cross" if m.cross else "self", m.kind, m.name)
            for m in self.modules
        ]  # fmt: skip
        headings = ("layer", "heads", "width", "queries", "keys", "attention", "class", "name")
        return f"{len(rows)} attention modules", headings, rows


def attention_modules(model: nn.Module, *inputs: Any, **named: Any) -> AttentionModules:
    """List the modules of a model whose attention `crisp.sparsify` can make sparse.

    Parameters
    ----------
    model
        A model of any kind.
    inputs, named
        What the model is called with. If given, it is run once, in evaluation mode and without gradients: that finds
        modules whose code does not name torch's function, and shows lengths. `crisp.sparsify` finds the same with
        `inputs=`.

    Returns
    -------
    AttentionModules
        One entry for each module; printed, a table.

    Raises
    ------
    TypeError
        If none is found.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> import torch
    >>> model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    >>> crisp.attention_modules(model, torch.randn(1, 5, 16))
    2 attention modules
    layer  heads  width  queries  keys  attention               class  name
        0      2      8        5     5       self  MultiheadAttention  layers.0.self_attn
        1      2      8        5     5       self  MultiheadAttention  layers.1.self_attn
    """
    seen = look(unwrapped(model), inputs, named) if inputs or named else {}
    with _marked(seen):
        try:
            host, root = host_of(model)
        except TypeError:
            if not seen:
                raise
            found, root = [], model
        else:
            found = [_described(layer, host.shape, seen.get(layer.module)) for layer in host.layers(root)]
            if not (found or seen):
                raise TypeError(host.why_not(root))
    known = {each.name for each in found}
    names = {module: name for name, module in root.named_modules()}
    for module, each in seen.items():
        if (name := names.get(module)) is not None and name not in known:
            layer = AttentionLayer(len(found), name, module, each.cross)
            found.append(_described(layer, None, each))
    return AttentionModules(tuple(found))


@contextmanager
def _marked(seen: Mapping[nn.Module, Seen]) -> Iterator[None]:
    """What a pass showed is known for a while, as `crisp.sparsify` with the same inputs would know it."""
    new = {module: each for module, each in seen.items() if SEEN not in vars(module)}
    for module, each in new.items():
        setattr(module, SEEN, each)
    try:
        yield
    finally:
        for module in new:
            delattr(module, SEEN)


def _described(layer: AttentionLayer, shape_of: Any, seen: Seen | None) -> AttentionModule:
    shape: Any = seen and seen.shape
    if shape is None and shape_of is not None:
        try:
            shape = shape_of(layer.module)
        except ValueError:
            shape = None
    sizes = {} if shape is None else {"heads": shape.heads, "groups": shape.groups, "width": shape.width}
    lengths = {} if seen is None else {"queries": seen.queries, "keys": seen.keys}
    return AttentionModule(
        layer.index, layer.name, type(layer.module).__name__, layer.cross, **sizes, **lengths
    )
