"""`crisp.explain(model)`: which kernel computes each attention layer, and why."""

from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crisp_attention.kernels import dispatch, measured
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.registry import KERNELS
from crisp_attention.methods.checks import check_whole
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.models import own
from crisp_attention.models.apply import sparse_root
from crisp_attention.models.configs import config_of
from crisp_attention.models.explanation import Explained, Explanation
from crisp_attention.models.learned import parameters_in
from crisp_attention.models.settings import AttentionLayer, Settings, heads_of, settings_of, shape_of

# where modules keep the share of weights that they drop in training, as a number or as a module with a `p`
DROPOUTS = (
    "attention_dropout",
    "attn_dropout",
    "attn_drop",
    "dropout_prob",
    "dropout_p",
    "dropout",
)
Tokens = tuple[int, int, torch.dtype, torch.device]


def explain(model: nn.Module, *, batch: int = 1, length: int = 128, training: bool = False) -> Explanation:
    """Which kernel computes each attention layer of a sparse model, why, and what the others lack.

    For `batch` sequences of `length` tokens in the model's dtype and on its device, for `training` with
    gradients and the model's dropout; nothing is computed.
    What only a forward pass brings along, such as the bias of relative positions, is not considered.
    `print` shows the result; its `rows` are the same as data. Raises ValueError if the model is not
    sparse, or an attention module does not say how many heads it has.
    """
    check_whole("batch", batch, 1)
    check_whole("length", length, 1)
    root = sparse_root(model)
    tokens = (batch, length, root.dtype, root.device)
    question = (
        f"{type(root).__name__} in {'training' if training else 'evaluation'}: "
        f"{batch} x {length} tokens, {str(root.dtype).removeprefix('torch.')}, {root.device} "
        f"(padding, biases and outputs that a forward pass asks for are not considered)"
    )
    found = [
        row for layer, settings in settings_of(root) for row in _explain(layer, settings, tokens, training)
    ]
    return Explanation(question, tuple(found))


def _explain(
    layer: AttentionLayer, settings: Settings, tokens: Tokens, training: bool
) -> Iterator[Explained]:
    method = settings.active_method(training)
    every = tuple(range(heads_of(layer.module)))
    if why := _dense(settings, method, tokens[1]):
        spec = "dense" if method is None else str(method)
        only_eager = _softcap(layer.module) is not None or _has_sinks(layer.module)
        runs = own.implementation(type(layer.module), settings.original, only_eager)
        yield Explained(layer.index, layer.name, every, spec, None, f"{why}; it runs {runs}", {})
        return
    assert method is not None
    with FakeTensorMode():  # tensors without memory, which yet say on which device they would be
        call = _call(layer.module, method, tokens, training)
        try:
            parts = dispatch.plan(call, settings.backend)
        except ValueError as error:
            yield Explained(
                layer.index, layer.name, every, str(method), settings.backend, f"it will fail: {error}", {}
            )
            return
        for part in parts:
            heads = every if part.heads is None else tuple(part.heads)
            others = {name: _not(name, part.call) for name in KERNELS if name != part.kernel}
            why = _why(part, settings.backend)
            yield Explained(layer.index, layer.name, heads, str(part.call.method), part.kernel, why, others)


def _dense(settings: Settings, method: LayerMethod | None, length: int) -> str | None:
    """Why a layer is left to the model's own attention, None if it is not."""
    if settings.method is None:
        return "it is dense"
    if method is None:
        return f"its method is for phase {settings.phase!r} only"
    if settings.backend == dispatch.AUTO and method.drops_nothing(length):
        return "it drops nothing" if method.drops_nothing() else f"it drops nothing of {length} keys"
    return None


def _why(part: dispatch.Part, backend: str) -> str:
    if backend != dispatch.AUTO:
        return f"backend={backend!r} was asked for"
    if part.kernel != dispatch.REFERENCE:
        row = next(row for row in measured.covering(part.call) if row.kernel == part.kernel)
        return f"it lacks nothing and is {row.why}"
    return "no other kernel can, or none is preferred"


def _not(kernel: str, call: Call) -> str:
    lacking = dispatch.lacks(kernel, call)
    return "it could, but was not chosen" if lacking is None else f"it lacks {lacking}"


def _call(module: nn.Module, method: LayerMethod, tokens: Tokens, training: bool) -> Call:
    batch, length, dtype, device = tokens
    heads, groups, width = shape_of(module)
    query = torch.empty(batch, heads, length, width, dtype=dtype, device=device, requires_grad=training)
    key = query.new_empty(batch, groups, length, width, requires_grad=training)
    return Call(
        query,
        key,
        key,
        method,
        scale=width**-0.5,
        causal=bool(getattr(module, "is_causal", False)),
        softcap=_softcap(module),
        dropout=_dropout(module) if training else 0.0,
        sinks=query.new_empty(heads) if _has_sinks(module) else None,
        seed=torch.empty((), dtype=torch.int64, device=device) if method.uses_seed else None,
        parameters={name: query.new_empty(value.shape) for name, value in parameters_in(module).items()},
    )


def _softcap(module: nn.Module) -> float | None:
    return getattr(module, "attn_logit_softcapping", None)


def _has_sinks(module: nn.Module) -> bool:
    return getattr(module, "sinks", None) is not None


def _dropout(module: nn.Module) -> float:
    holders = [(module, name) for name in DROPOUTS] + [(config_of(module), DROPOUTS[0])]
    for holder, name in holders:
        found = getattr(holder, name, None)
        if isinstance(share := getattr(found, "p", found), (int, float)):
            return float(share)
    return 0.0
