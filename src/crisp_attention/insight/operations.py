"""`crisp.counting(model)` and `crisp.Operations`: what attention costs, in floating point operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import nn

from crisp_attention.extras import needs
from crisp_attention.kernels.reference import Observation
from crisp_attention.methods.branches import Linear
from crisp_attention.methods.branches.feature_maps import LEARNED
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.heads import LayerMethod, PerHead
from crisp_attention.methods.layouts import BlockTopK, Full
from crisp_attention.methods.method import AnyMethod, Method, as_method
from crisp_attention.methods.ranking import share_count
from crisp_attention.methods.rules import Dense, RandomK, TopK
from crisp_attention.models.borrowing import borrowed
from crisp_attention.models.settings import Settings
from crisp_attention.tables import as_html, as_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Operations:
    """Floating point operations of attention; a multiplication and an addition are two.

    What is counted are products of queries, keys, values and what stands for them. Choosing pairs, softmax, feature
    maps and additions of sums of blocks are not: of blocks of b tokens they are some 1 / b of them. Nor is what a
    branch puts its own output in place of (`Linear(combine="alone")`).

    Attributes
    ----------
    dense
        What dense attention would take for the same valid pairs.
    scores
        Products of queries and keys, of the pairs that the layout shows: a rule looks at all of them.
    values
        Weighted sums of values, of the pairs that the rule keeps.
    linear
        The sums Σ φ(k) v' over keys and their products with φ(q), of the branch `Linear`. Where every query chooses for
        itself (causal masks), the pairs of φ(q) φ(k)' and their weighted sums of values.
    projection
        Its projection, and that of a learned feature map.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> crisp.Operations.of(crisp.SparseLinear(0.05), tokens=32760, heads=96, width=128)
    Operations of attention, in 1e12
    dense  scores  values  linear  projection  total  of dense
    52.75    1.34    1.34    0.21        0.10   2.99  5.7%
    The linear part is done in three products of queries or keys with a square matrix: sums of keys and
    values, queries with these, projection. SLA's paper counts one of them, 0.10.
    """

    dense: float = 0.0
    scores: float = 0.0
    values: float = 0.0
    linear: float = 0.0
    projection: float = 0.0

    @property
    def total(self) -> float:
        """What is done: all but `dense`."""
        return self.scores + self.values + self.linear + self.projection

    @classmethod
    def of(cls, method: AnyMethod, *, tokens: int, heads: int, width: int) -> "Operations":
        """Of self-attention of `tokens` tokens without padding, by a method whose number of pairs is known beforehand.

        Those are dense attention, top-k and other rules that keep a share, and block top-k, with or without a branch.

        Raises
        ------
        TypeError, ValueError
            For another method, and for numbers below 1.
        """
        for name, number in (("tokens", tokens), ("heads", heads), ("width", width)):
            check_whole(name, number, 1)
        one = as_method(method)
        if not isinstance(one, Method):
            raise TypeError(f"expected a method of all heads, got {method!r}")
        shown, kept = _known(one, tokens)
        each = heads * width
        branch = 0.0, 0.0
        if _is_alone(one):
            shown = kept = 0.0
        if _reaches(one, tokens):
            branch = _branch(one, float(tokens), float(tokens), width, width)
        return cls(
            4.0 * tokens**2 * each, 2.0 * shown * each, 2.0 * kept * each, *(heads * part for part in branch)
        )

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __repr__(self) -> str:
        unit = _unit(self.dense)
        text = as_text(f"Operations of attention, in 1e{unit}", HEADINGS, [self._words(unit)])
        return "\n".join([text, *self._note(unit)])

    def _words(self, unit: int) -> list[str]:
        numbers = [*(getattr(self, each.name) for each in fields(self)), self.total]
        share = f"{self.total / self.dense:.1%}" if self.dense else "–"
        return [*(f"{number / 10**unit:.2f}" for number in numbers), share]

    def _note(self, unit: int) -> list[str]:
        if not self.linear or abs(self.linear - 2 * self.projection) > 1e-6 * self.linear:
            return []
        one = f"{self.projection / 10**unit:.2f}"
        return [
            "The linear part is done in three products of queries or keys with a square matrix: sums of keys and",
            f"values, queries with these, projection. SLA's paper counts one of them, {one}.",
        ]


HEADINGS = ["dense", "scores", "values", "linear", "projection", "total", "of dense"]


@dataclass(repr=False)
class OperationCount:
    """Operations of a model's attention layers, from `crisp.counting`. Prints as a short table.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> with crisp.counting(model) as counted:
    ...     _ = model(torch.arange(16)[None])
    >>> counted.table()[["layer", "method", "dense", "total"]]
       layer method    dense    total
    0      0  dense  16384.0  16384.0
    """

    layers: dict[int, tuple[str, str, Operations]]

    @property
    def total(self) -> Operations:
        """Of all layers and calls."""
        return sum((each for *_, each in self.layers.values()), Operations())

    def table(self) -> "pd.DataFrame":
        """One row per layer, as a DataFrame of pandas: layer, name, method, the operations by kind, and their total."""
        pd = needs("pandas", extra="runs")
        kinds = [each.name for each in fields(Operations)]
        return pd.DataFrame(
            {"layer": layer, "name": name, "method": method}
            | {kind: getattr(counted, kind) for kind in kinds}
            | {"total": counted.total}
            for layer, (name, method, counted) in sorted(self.layers.items())
        )

    def __repr__(self) -> str:
        if not self.layers:
            return "OperationCount: nothing was counted yet"
        return "\n".join([as_text(*self._shown()), *self.total._note(_unit(self.total.dense))])

    def _repr_html_(self) -> str:
        return as_html(*self._shown()) if self.layers else escape(repr(self))

    def _shown(self) -> tuple[str, list[str], list[list[str]]]:
        unit, whole = _unit(self.total.dense), self.total
        rows = [
            [str(layer), method, *counted._words(unit), name]
            for layer, (name, method, counted) in sorted(self.layers.items())
        ]
        caption = f"Operations of {len(rows)} attention layers, in 1e{unit}"
        rows.append(["all", "", *whole._words(unit), ""])
        return caption, ["layer", "method", *HEADINGS, "name"], rows


@contextmanager
def counting(model: nn.Module) -> Iterator[OperationCount]:
    """Count the operations of every attention call of a model inside the block, layer by layer.

    Pairs are those that a layout shows and a rule keeps of the data, so any method can be counted; padding is left out.

    Parameters
    ----------
    model
        A model, sparse or not.

    Yields
    ------
    An `OperationCount`, which can be read during and after the block.

    Raises
    ------
    ValueError
        For a model that Crisp cannot observe.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> import torch
    >>> with crisp.counting(crisp.sparsify(model, crisp.BlockTopK(0.75, block_size=4))) as counted:
    ...     _ = model(torch.arange(16)[None])
    >>> counted.total.total / counted.total.dense
    0.25
    """
    counted = OperationCount({})

    def observe(settings: Settings, method: LayerMethod, seen: Observation) -> None:
        now = _of_call(method, seen)
        before = counted.layers.get(settings.index)
        whole = now if before is None else before[2] + now
        counted.layers[settings.index] = settings.name, method.name, whole

    with borrowed(model, observe=observe):
        yield counted


def _of_call(method: LayerMethod, seen: Observation) -> Operations:
    assert seen.value is not None
    real = (seen.queries & seen.valid.any(dim=-1)).unsqueeze(-1)
    valid, width, value_width = seen.valid & real, seen.rows.query.shape[-1], seen.value.shape[-1]
    shown = (seen.keep if seen.visible is None else seen.visible) & real
    kept = seen.keep & real
    heads, groups = seen.valid.shape[1], seen.rows.key.shape[1]
    together = bool((valid == (real & valid.any(dim=2, keepdim=True))).all())
    scores = values = linear = projection = 0.0
    groups_of = method.groups() if isinstance(method, PerHead) else {method: list(range(heads))}
    for one, own in groups_of.items():
        reached = None if seen.branch is None else seen.branch[:, own] & real[:, own]
        if reached is not None and bool(reached.any()):
            queries = float(real[:, own].sum())
            keys = float(valid[:, own].any(dim=2).sum() * groups / heads)
            pairs = None if together else float(reached.sum())
            part = _branch(one, queries, keys, width, value_width, pairs)
            linear, projection = linear + part[0], projection + part[1]
        if _is_alone(one):
            continue
        scores += 2.0 * int(shown[:, own].sum()) * width
        values += 2.0 * int(kept[:, own].sum()) * value_width
    return Operations(2.0 * int(valid.sum()) * (width + value_width), scores, values, linear, projection)


def _is_alone(method: Method) -> bool:
    return isinstance(method.branch, Linear) and method.branch.combine == "alone"


def _branch(
    method: Method, queries: float, keys: float, width: int, value_width: int, pairs: float | None = None
) -> tuple[float, float]:
    """Operations of the linear part of one head and of projections, for so many queries and keys.

    By the sums of keys or, where they are given, by pairs.
    """
    branch = method.branch
    if not isinstance(branch, Linear):
        return 0.0, 0.0
    learned = branch.feature_map == LEARNED
    features = 2 * width if learned else width
    projection = 2.0 * queries * value_width**2 if branch.combine == "project" else 0.0
    mapped = 2.0 * (queries + keys) * width**2 if learned else 0.0
    products = (
        (queries + keys) * features * value_width if pairs is None else pairs * (features + value_width)
    )
    return 2.0 * products, projection + mapped


def _reaches(method: Method, tokens: int) -> bool:
    """Whether the linear part has a block left, among `tokens` tokens."""
    branch, layout = method.branch, method.layout
    if not isinstance(branch, Linear) or branch.scope == "all" or not isinstance(layout, BlockTopK):
        return isinstance(branch, Linear)
    blocks = torch.tensor(-(-tokens // layout.block_size), device="cpu")
    beside = int(share_count(blocks, branch.negligible, minimum=0))
    return int(share_count(blocks, layout.sparsity)) < beside


def _known(method: Method, tokens: int) -> tuple[float, float]:
    """The pairs that a method's layout shows and those that its rule keeps, among `tokens` tokens."""
    layout, rule = method.layout, method.rule
    unknown = ValueError(
        f"the pairs of {method} are not known beforehand: use crisp.counting(model). Those of dense attention, of "
        f"rules that keep a share, and of block top-k are"
    )
    if type(layout) is Full:
        keys = float(tokens)
    elif type(layout) is BlockTopK:
        blocks = -(-tokens // layout.block_size)
        share = int(share_count(torch.tensor(blocks, device="cpu"), layout.sparsity))
        nearest = range(1 - layout.local_blocks, layout.local_blocks)
        kept = [
            len(
                set(range(min(layout.sink_blocks, blocks)))
                | {own + each for each in nearest if 0 <= own + each < blocks}
            )
            for own in range(blocks)
        ]
        keys = sum(max(share, forced) for forced in kept) / blocks * tokens / blocks
    else:
        raise unknown
    if isinstance(rule, Dense):
        return keys * tokens, keys * tokens
    if isinstance(rule, TopK | RandomK):
        return keys * tokens, float(rule.count_of(torch.tensor(round(keys)))) * tokens
    raise unknown


def _unit(number: float) -> int:
    """The power of ten, 3 to 12, that a number is shown in."""
    return next((unit for unit in (12, 9, 6) if number >= 10 ** (unit - 1)), 3)
