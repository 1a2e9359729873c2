"""`crisp.explain(model)`: what computes each attention layer, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crisp_attention.kernels import dispatch, registry
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models.apply import supported_layers
from crisp_attention.models.host import AttentionLayer, Host, device_of, dtype_of, host_of
from crisp_attention.models.parameters import parameters_of, wanted_by
from crisp_attention.models.settings import Settings, settings_on
from crisp_attention.models.sparse_model import SparseModel

DENSE = "dense"


@dataclass(frozen=True)
class Explained:
    """The kernel of one layer, or of some of its heads; `lacks` says why the other kernels were not chosen.

    `kernel` is None for a layer that is left to the model's own attention.
    """

    layer: int
    name: str
    heads: tuple[int, ...]
    method: str
    kernel: str | None
    why: str
    lacks: dict[str, str]

    def lines(self, alone: bool) -> Iterator[str]:
        """The row as text; the heads are named unless it is `alone` in its layer."""
        which = "" if alone else f"heads {', '.join(map(str, self.heads))}: "
        kernel = "the model's own attention" if self.kernel is None else f"kernel {self.kernel}"
        yield f"  {which}{self.method} -> {kernel}: {self.why}"
        for name, words in self.lacks.items():
            yield f"    not {name}: {words}"


@dataclass(frozen=True)
class Explanation:
    """The question, and `rows`: one for each layer, or for each group of heads in it. Prints as text."""

    question: str
    rows: tuple[Explained, ...]

    def __str__(self) -> str:
        return "\n".join([self.question, *self._lines()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _lines(self) -> Iterator[str]:
        layers = [(at, list(rows)) for at, rows in groupby(self.rows, key=lambda row: row.layer)]
        for _, run in groupby(layers, key=lambda each: [_content(row) for row in each[1]]):
            alike = list(run)
            (first, rows), last = alike[0], alike[-1][0]
            yield f"layer {first} ({rows[0].name})" if first == last else f"layers {first}-{last}"
            for row in rows:
                yield from row.lines(alone=len(rows) == 1)


@dataclass(frozen=True)
class _Question:
    """A host's model, and the calls to explain."""

    host: Host
    batch: int
    length: int
    dtype: torch.dtype
    device: torch.device
    training: bool

    def call(self, module: nn.Module, method: LayerMethod) -> Call:
        """The calls of a forward pass, with tensors that have no memory under `FakeTensorMode`."""
        heads, groups, width = self.host.shape(module)
        traits = self.host.traits(module, self.training)
        rows, gradient = (self.batch, self.length, width), self.training
        query = torch.empty(
            rows[0], heads, *rows[1:], dtype=self.dtype, device=self.device, requires_grad=gradient
        )
        key = query.new_empty(rows[0], groups, *rows[1:], requires_grad=gradient)
        return Call(
            query,
            key,
            key,
            method,
            scale=width**-0.5,
            causal=traits.causal,
            softcap=traits.softcap,
            dropout=traits.dropout,
            sinks=query.new_empty(heads) if traits.sinks else None,
            seed=torch.empty((), dtype=torch.int64, device=self.device) if method.uses_seed else None,
            parameters={name: query.new_empty(each.shape) for name, each in parameters_of(module).items()},
            dense=slice(0, 1) if traits.text else None,
        )


def explain(model: nn.Module, *, batch: int = 1, length: int = 128, training: bool = False) -> Explanation:
    """Which kernel computes each attention layer of a model, why, and what the others lack.

    Nothing is computed. What only a forward pass knows, such as the bias of relative positions, is not considered.

    Parameters
    ----------
    model
        A sparse model; or a dense one, for which it names the implementation of its own attention.
    batch, length
        The number of sequences and of their tokens, in the model's dtype and on its device.
    training
        With gradients and the model's dropout.

    Returns
    -------
    Prints as text; its `rows` hold the same as data.

    Raises
    ------
    ValueError
        If Crisp cannot make the model sparse.

    Examples
    --------
    >>> import crisp_attention as crisp
    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))
    >>> print(crisp.explain(model))
    BertModel in evaluation: 1 x 128 tokens, float32, cpu (padding, biases and outputs that a forward pass asks for \
are not considered)
    layers 0-1
      dense -> the model's own attention: the model is dense; it runs sdpa
    """
    check_whole("batch", batch, 1)
    check_whole("length", length, 1)
    host, root = host_of(model)
    asked = _Question(host, batch, length, dtype_of(root), device_of(root), training)
    question = (
        f"{type(root).__name__} in {'training' if training else 'evaluation'}: "
        f"{batch} x {length} tokens, {str(asked.dtype).removeprefix('torch.')}, {asked.device} "
        f"(padding, biases and outputs that a forward pass asks for are not considered)"
    )
    if (sparse := SparseModel.find(model)) is None:
        rows = [_of_dense(host, layer) for layer in supported_layers(host, root)]
    else:
        sparse.check_active()
        rows = [row for layer in sparse.layers for row in _explain(layer, settings_on(layer), asked)]
    return Explanation(question, tuple(rows))


def _of_dense(host: Host, layer: AttentionLayer) -> Explained:
    every = _heads(host, layer)[0]
    why = f"the model is dense; it runs {host.running(layer.module)}"
    return Explained(layer.index, layer.name, every, DENSE, None, why, {})


def _heads(host: Host, layer: AttentionLayer) -> tuple[tuple[int, ...], str]:
    """The numbers of a layer's heads, or why they are not known."""
    try:
        return tuple(range(host.shape(layer.module).heads)), ""
    except ValueError as error:
        return (), str(error)


def _explain(layer: AttentionLayer, settings: Settings, asked: _Question) -> Iterator[Explained]:
    method = settings.active_method(asked.training)
    every, unknown = _heads(asked.host, layer)
    if why := settings.why_dense(asked.training, asked.length):
        spec = DENSE if method is None else str(method)
        runs = asked.host.own_runs(layer.module, settings.original)
        yield Explained(layer.index, layer.name, every, spec, None, f"{why}; it runs {runs}", {})
        return
    assert method is not None
    if lacking := sorted(set(wanted_by(asked.host, layer.module, method)) - set(parameters_of(layer.module))):
        why = f"it will fail: {', '.join(lacking)} is not fitted; call crisp.fit(model, batches) first"
        yield Explained(layer.index, layer.name, every, str(method), settings.backend, why, {})
        return
    if unknown:
        yield Explained(
            layer.index, layer.name, every, str(method), settings.backend, f"not known: {unknown}", {}
        )
        return
    with FakeTensorMode():  # tensors without memory that still have a device
        call = asked.call(layer.module, method)
        try:
            parts = dispatch.plan(call, settings.backend)
        except ValueError as error:
            why = f"it will fail: {error}"
            yield Explained(layer.index, layer.name, every, str(method), settings.backend, why, {})
            return
        for part in parts:
            heads = every if part.heads is None else tuple(part.heads)
            others = {name: _not(name, part.call) for name in KERNELS if name != part.kernel}
            why = _why(part, settings.backend)
            yield Explained(layer.index, layer.name, heads, str(part.call.method), part.kernel, why, others)


def _why(part: dispatch.Part, backend: str) -> str:
    if backend != dispatch.AUTO:
        return f"backend={backend!r} was asked for"
    row = next((row for row in registry.covering(part.call) if row.kernel == part.kernel), None)
    return "no faster kernel supports this call" if row is None else f"it lacks nothing and is {row.why}"


def _not(kernel: str, call: Call) -> str:
    lacking = dispatch.lacks(kernel, call)
    return "supported, but ranked lower" if lacking is None else f"it lacks {lacking}"


def _content(row: Explained) -> tuple[Any, ...]:
    return (row.heads, row.method, row.kernel, row.why, row.lacks)
