"""Random calls of every kind, one for each seed and number: a call that fails can be made again alone.

Most inputs are whole eighths and scales powers of two, so that scores are exact in every dtype, and what is kept of
them is the same in each, ties included. The others are normal numbers with the usual scale.
"""

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import torch
from torch import Tensor

from crisp_attention import (
    LSH,
    BigBird,
    BlockTopK,
    Dense,
    Entmax,
    Full,
    Method,
    NofM,
    PerHead,
    RandomK,
    RandomPairs,
    SparseLinear,
    Strided,
    Threshold,
    TopK,
    TopKTopP,
    TopP,
    Window,
)
from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.pairs import causal_mask, split_mask
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rules import Rule

LOWEST = torch.finfo(torch.float32).min
DTYPES = {torch.float32: 8, torch.bfloat16: 2, torch.float16: 2, torch.float64: 0.3}
NORMAL = "normal"
ROWS = {
    NORMAL: 5,
    "eighths": 8,
    "few levels": 2,
    "repeated keys": 2,
    "equal keys": 0.5,
    "one outlier": 1,
    "zeros": 0.2,
}
STRIDES = {
    "contiguous": 4,
    "heads inside positions": 4,
    "width first": 1,
    "cut out": 2,
    "every second number": 1,
    "one for all examples": 1,
    "one for all heads": 1,
}
MASKS = {
    "none": 5,
    "right padding": 2,
    "left padding": 2,
    "holes": 2,
    "of pairs": 2,
    "of heads": 1,
    "decoder": 2,
    "empty rows": 1,
    "one key": 0.5,
    "nothing": 0.3,
}


def drawn(seed: int, number: int) -> Call:
    """The call with this number: a method, a shape, inputs as some model lays them out, and masks."""
    random = Random(f"{seed}, {number}")
    generator = torch.Generator().manual_seed(random.getrandbits(60))
    size = _size(random)
    method = _layer_method(random, size)
    rows = _pick(random, ROWS)
    dtype = torch.float32 if rows == NORMAL else _pick(random, DTYPES)

    def states(heads: int, length: int, width: int) -> Tensor:
        found = _states(rows, (size.batch, heads, length, width), generator)
        return _laid_out(_pick(random, STRIDES), found.to(dtype))

    parameters = {
        name: _learned(name, each.value, generator)
        for name, each in method.parameters(Shape(size.heads, size.groups, size.width)).items()
    }
    call = Call(
        query=states(size.heads, size.queries, size.width),
        key=states(size.groups, size.keys, size.width),
        value=states(size.groups, size.keys, size.value_width),
        method=method,
        scale=size.width**-0.5 if rows == NORMAL else _exact_scale(random, size.width),
        causal=random.random() < 0.3,
        softcap=random.choice((16.0, 64.0)) if random.random() < 0.05 else None,
        sinks=torch.randn(size.heads, generator=generator) if random.random() < 0.05 else None,
        seed=torch.tensor(random.getrandbits(31)) if method.uses_seed else None,
        parameters=parameters,
    )
    valid, bias = split_mask(_mask(random, size, generator))
    if bias is not None:
        bias = bias.to(dtype)
    return replace(call, valid=valid, bias=bias)


def _pick(random: Random, weights: dict) -> object:
    return random.choices(list(weights), list(weights.values()))[0]


def _size(random: Random) -> SimpleNamespace:
    """Mostly small; sometimes past the tiles of kernels."""
    long = random.random() < 0.06
    queries = random.randint(60, 200) if long else random.choice((1, *range(1, 40)))
    keys = queries
    if random.random() < 0.3:
        keys = random.randint(1, 200 if random.random() < 0.2 else 60)
    groups = random.choice((1, 1, 2, 3))
    return SimpleNamespace(
        batch=1 if long else random.choice((1, 1, 2, 3)),
        groups=groups,
        heads=groups * random.choice((1, 1, 2, 3) if not long else (1, 2)),
        queries=queries,
        keys=keys,
        width=(width := random.randint(1, 80)),
        value_width=width if random.random() < 0.8 else random.randint(1, 80),
    )


def _exact_scale(random: Random, width: int) -> float:
    return _pick(random, {2.0 ** -((width.bit_length() - 1) // 2): 20, -0.25: 1, 0.0: 0.3})


def _states(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    def eighths(*shape: int, most: int = 16) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=generator) / 8

    if kind == "few levels":
        return eighths(*shape, most=1) * 8
    if kind == "zeros":
        return torch.zeros(shape)
    if kind in ("repeated keys", "equal keys"):
        few = eighths(*shape[:2], 1 if kind == "equal keys" else 3, shape[3])
        which = torch.randint(few.shape[2], (shape[2],), generator=generator)
        return few[:, :, which]
    found = torch.randn(shape, generator=generator) if kind == NORMAL else eighths(*shape)
    if kind == "one outlier":
        found[:, :, shape[2] // 2] *= 8
    return found


def _laid_out(how: str, states: Tensor) -> Tensor:
    """The same numbers, or for "one for all …" fewer of them, with other strides."""
    if how == "heads inside positions":
        return states.transpose(1, 2).contiguous().transpose(1, 2)
    if how == "width first":
        return states.transpose(2, 3).contiguous().transpose(2, 3)
    if how == "cut out":
        return torch.cat([states[..., :3, :], states], dim=2)[:, :, min(3, states.shape[2]) :]
    if how == "every second number":
        return states.repeat_interleave(2, dim=-1)[..., ::2]
    if how == "one for all examples":
        return states[:1].expand_as(states)
    return states[:, :1].expand_as(states) if how == "one for all heads" else states


def _learned(name: str, start: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("alpha"):
        return start + 0.02 * torch.randn(start.shape, generator=generator)
    if name.endswith("temperature"):
        return torch.zeros_like(start)
    return start + torch.randn(start.shape, generator=generator) / 8


def _mask(random: Random, size: SimpleNamespace, generator: torch.Generator) -> Tensor | None:
    """Bool or additive, expanded or not; None without one."""
    valid = _valid(_pick(random, MASKS), random, size, generator)
    full = (size.batch, size.heads, size.queries, size.keys)
    if random.random() < 0.15:
        shape = random.choice(((1, 1), (1, size.heads), (size.batch, 1)))
        bias = torch.randint(-16, 17, (*shape, size.queries, size.keys), generator=generator) / 8
        if valid is None:
            return bias
        bias, valid = torch.broadcast_tensors(bias, valid)
        return bias.masked_fill(~valid, random.choice((-torch.inf, LOWEST, -1e4, -1e9)))
    if valid is None:
        return None
    if random.random() < 0.3:
        return torch.zeros(valid.shape).masked_fill(~valid, random.choice((-torch.inf, LOWEST, -1e4)))
    return valid.expand(size.batch, -1, *full[2:]) if random.random() < 0.5 else valid


def _valid(kind: str, random: Random, size: SimpleNamespace, generator: torch.Generator) -> Tensor | None:
    batch, queries, keys = size.batch, size.queries, size.keys
    key = torch.arange(keys).expand(batch, 1, 1, keys)
    some = torch.randint(0, keys + 1, (batch, 1, 1, 1), generator=generator)

    def share(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < random.choice((0.2, 0.7, 0.95))

    if kind == "right padding":
        return key < some.clamp(min=1)
    if kind == "left padding":
        return key >= some.clamp(max=keys - 1)
    if kind == "holes":
        return share(batch, 1, 1, keys)
    if kind == "of pairs":
        return share(batch, 1, queries, keys)
    if kind == "of heads":
        return share(batch, size.heads, queries, keys)
    if kind == "decoder":  # of a cache: the last query belongs to the last key
        behind = torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries
        return behind[None, None] & (key >= some.clamp(max=keys - 1))
    if kind == "empty rows":
        return causal_mask(queries, keys, torch.device("cpu")) & (
            torch.rand(queries, 1, generator=generator) < 0.6
        )
    if kind == "one key":
        return key == some.clamp(max=keys - 1)
    return torch.zeros(batch, 1, 1, keys, dtype=torch.bool) if kind == "nothing" else None


def _layer_method(random: Random, size: SimpleNamespace) -> LayerMethod:
    if size.heads > 1 and random.random() < 0.06:
        found = tuple(_method(random, size) for _ in range(size.heads))
        if len(set(found)) > 1:
            return PerHead(found)
    return _method(random, size)


def _method(random: Random, size: SimpleNamespace) -> Method:
    positions = size.queries <= size.keys
    if not positions:
        return Method(rule=_rule(random, positions))
    if random.random() < 0.06:
        ways = ("project", "alpha", "sum") if size.width == size.value_width else ("alpha", "sum")
        return SparseLinear(
            random.choice((0.2, 0.5)),
            random.choice((0.0, 0.2)),
            random.choice((2, 16, 32)),
            feature_map=random.choice(("softmax", "elu", "relu", "hedgehog")),
            combine=random.choice(ways),
        )
    layout = _layout(random)
    return Method(layout, Dense() if layout != Full() and random.random() < 0.6 else _rule(random, positions))


def _sparsity(random: Random) -> float:
    return random.choice((0.0, 0.1, 0.3, 0.5, 0.8, 0.9, 0.99))


def _rule(random: Random, positions: bool) -> Rule:
    choices = {
        Dense(): 1,
        TopK(_sparsity(random), random.choice((1, 1, 3))): 5,
        TopK(keep=random.choice((1, 2, 4, 16, 17, 64))): 2,
        TopP(random.choice((0.1, 0.3, 0.6, 0.9, 0.99, 1.0))): 2,
        TopKTopP(_sparsity(random), mass=random.choice((0.2, 0.6))): 1,
        Threshold(random.choice((0.0, 0.01, 0.3, 0.7))): 2,
        NofM(*random.choice(((1, 3), (2, 4), (1, 5), (8, 16), (3, 17), (8, 64)))): 2,
        Entmax(random.choice((1, 1.1, 1.25, 1.5, 1.5, 1.5, 2, 3, "learned"))): 4,
        RandomK(_sparsity(random)): 2 if positions else 0,
    }
    rule = _pick(random, choices)
    if random.random() < 0.1:
        return replace(rule, temperature=random.choice((0.5, 4, "learned")))
    return rule


def _layout(random: Random) -> Layout:
    odd = 2 * random.choice((0, 1, 1, 2, 8, 20)) + 1
    size = random.choice((1, 2, 3, 5, 8, 16, 16, 32, 32, 64, 128))
    choices = {
        Full(): 9,
        Window(odd, random.choice((0, 0, 1, 3)), random.choice((1, 1, 1, 2, 3))): 3,
        BlockTopK(_sparsity(random), size, random.choice((0, 0, 1)), random.choice((0, 1, 1, 2))): 4,
        BigBird(
            odd,
            random.choice((0, 1)),
            random.choice((0, 1, 2)),
            random.choice((1, 2, 4)),
            random.randint(0, 9),
        ): 0.7,
        Strided(random.choice((2, 3, 8)), random.choice((None, 2))): 0.7,
        LSH(random.choice((2, 4, 8)), random.choice((1, 2)), random.randint(0, 9)): 0.5,
        RandomPairs(_sparsity(random), random.randint(0, 9)): 0.7,
    }
    return _pick(random, choices)
