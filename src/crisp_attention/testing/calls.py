"""The calls that every kernel is tested on.

Inputs are whole eighths and scales powers of two, so that scores are exact in every dtype, and so is
what is kept of them: in the dtype, in float64 and in every kernel alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crisp_attention.kernels.call import Call
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.layouts import (
    LSH,
    BigBird,
    BlockTopK,
    RandomPairs,
    Routing,
    Sparsefinder,
    Strided,
    Window,
)
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rules import Dense, Entmax, NofM, RandomK, Threshold, TopK, TopKTopP, TopP
from crisp_attention.methods.sparse_linear import SparseLinear

METHODS = {
    "dense": Method(rule=Dense()),
    "topk": Method(rule=TopK(0.6)),
    "topk, 4": Method(rule=TopK(keep=4)),
    "topk, sharper": Method(rule=TopK(0.6, temperature=4)),
    "topk, learned temperature": Method(rule=TopK(0.6, temperature="learned")),
    "topp": Method(rule=TopP(0.6)),
    "topk_topp": Method(rule=TopKTopP(0.7, mass=0.5)),
    "threshold": Method(rule=Threshold(0.6)),
    "nofm": Method(rule=NofM(1, 3)),
    "entmax": Method(rule=Entmax()),
    "sparsemax": Method(rule=Entmax(2)),
    "entmax 1.3": Method(rule=Entmax(1.3)),
    "entmax, learned": Method(rule=Entmax("learned")),
    "random": Method(rule=RandomK(0.6)),
    "window": Method(layout=Window(3, global_tokens=1)),
    "window, dilated": Method(layout=Window(5, dilation=2)),
    "window+topk": Method(Window(5), TopK(0.5, min_keep=2)),
    "block_topk": Method(layout=BlockTopK(0.6, block_size=2)),
    "block_topk+entmax": Method(BlockTopK(0.6, block_size=2, sink_blocks=1), Entmax()),
    "sparse_linear": SparseLinear(0.4, 0.2, block_size=2),
    "sparse_linear, all": SparseLinear(0.4, 0.2, 2, feature_map="elu", scope="all"),
    "sparse_linear, alpha": SparseLinear(0.4, 0.2, 2, feature_map="hedgehog", combine="alpha"),
    "bigbird": Method(layout=BigBird(1, block_size=2)),
    "strided": Method(layout=Strided(3, local=2)),
    "lsh": Method(layout=LSH(4)),
    "random_pairs": Method(layout=RandomPairs(0.6)),
    "routing": Method(Routing(clusters=4), Entmax()),
    "sparsefinder": Method(Sparsefinder(rank=2, clusters=6), Entmax()),
    "sparsefinder, distance": Method(Sparsefinder("distance", rank=2, threshold=2.0, shared=False), Entmax()),
    "sparsefinder, quantize": Method(Sparsefinder("quantize", rank=2, bucket_size=2), Entmax()),
    "sparsefinder, blocks": Method(Sparsefinder(rank=2, clusters=3, block_size=2, window=1), Entmax()),
    # that nothing is dropped, and blocks as long as kernels take them
    "topk, all": Method(rule=TopK(0.0)),
    "block_topk, 16": Method(layout=BlockTopK(0.5, block_size=16)),
    "block_topk, 64": Method(layout=BlockTopK(0.5, block_size=64, sink_blocks=1)),
    "block_topk, 16+topk": Method(BlockTopK(0.4, block_size=16), TopK(0.5)),
}
# for temperatures, powers of two, which keep scores exact
LEARNED = {"rule.alpha": (-0.02, 0.02), "rule.temperature": (0.0, 0.0)}


@dataclass(frozen=True)
class Case:
    """The shape of a call, and what is done to it. `keys` None: as many as queries."""

    length: int = 33
    keys: int | None = None
    width: int = 8
    heads: int = 4
    groups: int = 4
    batch: int = 2
    dtype: torch.dtype = torch.float32
    causal: bool = False
    change: Callable[[Call], Call] = lambda call: call

    def fits(self, method: LayerMethod) -> bool:
        """Whether the method is defined for it."""
        return not method.uses_positions or self.keys is None or self.keys >= self.length

    def call(self, method: LayerMethod, device: str = "cpu") -> Call:
        """The call, its tensors leaves that want gradients where they can have some."""
        generator = torch.Generator().manual_seed(1000 * self.length + self.width)
        keys = self.length if self.keys is None else self.keys

        def eighths(*shape: int) -> Tensor:
            return (torch.randint(-16, 17, shape, generator=generator) / 8).to(device, self.dtype)

        parameters = {
            name: torch.linspace(*LEARNED[name], self.heads, device=device)
            if name in LEARNED
            else torch.randn(each.value.shape, generator=torch.Generator().manual_seed(1)).to(device)
            for name, each in method.parameters(Shape(self.heads, self.groups, self.width)).items()
        }
        return self.change(
            Call(
                query=eighths(self.batch, self.heads, self.length, self.width),
                key=eighths(self.batch, self.groups, keys, self.width),
                value=eighths(self.batch, self.groups, keys, self.width),
                method=method,
                scale=2.0 ** -((self.width.bit_length() - 1) // 2),
                causal=self.causal,
                seed=torch.tensor(11, device=device) if method.uses_seed else None,
                parameters=parameters,
            )
        )


def valid(mask: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Callable[[Call], Call]:
    """With the pairs valid that `mask` of example, head, query and key says; each (B, 1, 1, 1) and so on."""

    def change(call: Call) -> Call:
        sizes = (*call.query.shape[:3], call.key.shape[2])
        axes = [torch.arange(n, device=call.query.device) for n in sizes]
        places = [axis.reshape([-1 if i == at else 1 for i in range(4)]) for at, axis in enumerate(axes)]
        return replace(call, valid=mask(*places))

    return change


def spanned(*bounds: tuple[int, int], first_query: int = 0) -> Callable[[Call], Call]:
    """With the keys of each example valid from the first of its bounds up to the second."""
    return lambda call: replace(
        call, span=torch.tensor(bounds, device=call.query.device), first_query=first_query
    )


def scaled(query: float = 1.0, key: float = 1.0, value: float = 1.0) -> Callable[[Call], Call]:
    """With larger or smaller inputs; by powers of two, which keep them exact."""
    return lambda call: replace(call, query=call.query * query, key=call.key * key, value=call.value * value)


def biased(heads: int, *, slope: bool = False) -> Callable[[Call], Call]:
    """With a bias, for each head its own or one for all; one that wants a gradient if `slope`."""

    def change(call: Call) -> Call:
        shape = (1, heads, call.query.shape[2], call.key.shape[2])
        drawn = torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(1)) / 8
        bias = drawn.to(call.query.device, call.query.dtype)
        return replace(call, bias=bias.requires_grad_() if slope else bias)

    return change


def equal_scores(call: Call) -> Call:
    """Every key the same: all scores of a row are equal."""
    return replace(call, key=call.key[:, :, :1].expand_as(call.key).contiguous())


def as_transformers_lays_it_out(call: Call) -> Call:
    """Heads inside positions, values cut out of a wider tensor, and a mask that is expanded."""
    wide = torch.cat([call.value, call.value], dim=-1)
    seen = torch.arange(call.key.shape[2], device=call.query.device) < call.key.shape[2] - 2
    return replace(
        call,
        query=call.query.transpose(1, 2).contiguous().transpose(1, 2),
        key=call.key.transpose(2, 3).contiguous().transpose(2, 3),
        value=wide[..., : call.value.shape[-1]],
        valid=seen.expand(call.query.shape[0], 1, call.query.shape[2], -1),
    )


def expanded(call: Call) -> Call:
    """The same keys and values for every example and head, stored once: they must not be written to."""
    return replace(
        call,
        key=call.key[:1, :1].expand_as(call.key),
        value=call.value[:1, :1].expand_as(call.value),
    )


def flat_values(call: Call) -> Call:
    """Values narrower than keys."""
    return replace(call, value=call.value[..., :3].contiguous())


CASES = {
    **{f"{n} long": Case(n) for n in (1, 2, 16, 33, 64, 130, 257)},
    **{f"{d} wide": Case(16, width=d) for d in (4, 32, 64, 80)},
    **{f"{str(t)[6:]}": Case(64, dtype=t, width=32) for t in (torch.bfloat16, torch.float16)},
    "grouped heads": Case(groups=2),
    "one key head": Case(groups=1),
    "narrow values": Case(change=flat_values),
    "cross": Case(20, keys=45),
    "cross, fewer keys": Case(45, keys=20),
    "one query": Case(1, keys=45),
    "right padding": Case(change=valid(lambda b, h, i, j: j < 33 - 16 * b)),
    "left padding": Case(change=valid(lambda b, h, i, j: j >= 16 * b)),
    "causal": Case(causal=True),
    "causal, 130": Case(130, causal=True, groups=2),
    "causal, offset": Case(20, keys=45, change=valid(lambda b, h, i, j: j <= i + 25)),
    "causal, padding": Case(causal=True, change=valid(lambda b, h, i, j: j >= 16 * b)),
    "causal, fewer queries": Case(20, keys=45, causal=True),
    "a mask of each head": Case(change=valid(lambda b, h, i, j: (3 * i + 5 * j + h + b) % 4 > 0)),
    "bias": Case(change=biased(1)),
    "bias of each head": Case(change=biased(4)),
    "bias with a gradient": Case(change=biased(4, slope=True)),
    "softcap": Case(change=lambda call: replace(call, softcap=64.0)),
    "sinks": Case(change=lambda call: replace(call, sinks=torch.ones(4, device=call.query.device))),
    "equal scores": Case(change=equal_scores),
    "equal scores, 130": Case(130, change=equal_scores),
    "one valid key": Case(change=valid(lambda b, h, i, j: j == (7 * i + b) % 33)),
    "no valid key": Case(change=valid(lambda b, h, i, j: (b == 0) & (i % 3 > 0) & (j > 2))),
    "large": Case(change=scaled(2.0**13, 2.0**13, 2.0**13)),
    "large, bfloat16": Case(dtype=torch.bfloat16, change=scaled(2.0**13, 2.0**13, 2.0**13)),
    "negative scale": Case(64, change=lambda call: replace(call, scale=-call.scale)),
    "scale of 0": Case(64, change=lambda call: replace(call, scale=0.0)),
    "denormal queries": Case(change=scaled(query=2.0**-133, key=2.0**120)),
    "denormal values": Case(change=scaled(value=2.0**-135)),
    "as transformers lays it out": Case(groups=2, change=as_transformers_lays_it_out),
    "expanded": Case(change=expanded),
    "spans": Case(change=spanned((0, 20), (16, 33))),
    "spans, one empty": Case(64, change=spanned((40, 57), (7, 7))),
    "spans, causal": Case(130, causal=True, groups=2, change=spanned((70, 130), (0, 61))),
    "spans, causal, later queries": Case(
        20, 61, causal=True, change=spanned((3, 61), (0, 50), first_query=30)
    ),
    "later queries": Case(7, 45, causal=True, change=spanned((0, 45), (0, 45), first_query=38)),
    "spans, one query": Case(1, 77, groups=2, change=spanned((5, 70), (33, 77))),
}
