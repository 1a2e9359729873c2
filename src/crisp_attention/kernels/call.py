"""One attention call, as every kernel is given it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from crisp_attention.methods.blocks import BlockGraph
from crisp_attention.methods.hashing import head_seeds
from crisp_attention.methods.heads import LayerMethod
from crisp_attention.methods.layouts import Layout
from crisp_attention.methods.method import Method
from crisp_attention.methods.part import Shape
from crisp_attention.methods.rows import Rows, numbers_of, of_heads


@dataclass(frozen=True)
class Call:
    """Sparse attention of queries (B, H, L, D) over keys (B, G, S, D) and values (B, G, S, Dv).

    `scores = query · key * scale`, capped to ±`softcap` by tanh, plus `bias`; the method's layout and
    rule keep some of the valid pairs; the rule weighs the kept scores (with one further logit per
    head, `sinks` (H,), that takes weight and gives nothing); dropout; weighted sum of values.
    `valid` is bool and broadcasts to (B, H, L, S). Without a mask in memory, `causal` also forbids the keys
    j > i + `first_query`, the position of the first query among the keys, and `span`, int (B, 2), those before each
    example's first valid key and from the one after its last. They alone decide what counts as a key: a valid pair
    that scores -inf counts wherever keys are counted, and weighs nothing next to larger scores. A row whose largest
    kept score is NaN, +inf or -inf is NaN (where nothing is dropped it is what torch's own attention says); one without
    a valid pair is 0. `bias` broadcasts too.
    `seed`, of every query, example or of all, is for rules that draw; dropout draws from `generator`,
    by default torch's global one. `parameters` are those of the method that the layer holds; `blocks` which blocks
    see each other, where the method's layout says so: dispatch asks it. `heads` are the numbers of the query heads in
    their layer, where they are only some of it. `dense` are tokens, queries and keys alike, at the beginning or the end
    of a self-attention, that the method leaves alone: they see every valid key and are seen by all, and the method
    decides on the others as if they were alone.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    method: LayerMethod
    scale: float
    valid: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    seed: Tensor | None = None
    generator: torch.Generator | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    blocks: BlockGraph | None = None
    heads: tuple[int, ...] | None = None
    dense: slice | None = None
    first_query: int = 0
    span: Tensor | None = None

    @property
    def rows(self) -> Rows:
        """The rows that the layout and the rule decide on."""
        return Rows(
            self.query,
            self.key,
            self.scale,
            self.valid,
            self.causal,
            self.softcap,
            self.bias,
            None if self.seed is None else head_seeds(self.seed, self.query.shape[1], self.heads),
            self.parameters,
            self.heads,
            self.first_query,
            self.span,
        )

    def masked(self) -> "Call":
        """The same with `first_query` and `span` in the mask, for kernels that know neither."""
        if self.causal and self.first_query:
            return replace(self, valid=self.rows.valid, causal=False, first_query=0, span=None)
        return self if self.span is None else replace(self, valid=self.rows.shown, span=None)

    @property
    def others(self) -> slice:
        """The tokens beside those that stay dense, all without such; `dense` are at one end."""
        if self.dense is None:
            return slice(None)
        count = self.query.shape[2]
        first, end, _ = self.dense.indices(count)
        return slice(end, count) if first == 0 else slice(0, first)

    @property
    def modifier(self) -> str | None:
        """What changes its softmax beside masks and dropout, in words: the first that it has, None without any."""
        given = {"a bias": self.bias, "a softcap": self.softcap, "attention sinks": self.sinks}
        return next((words for words, value in given.items() if value is not None), None)

    @property
    def layout(self) -> Layout:
        """That of a method for all heads."""
        assert isinstance(self.method, Method)
        return self.method.layout

    @property
    def shape(self) -> Shape:
        """Of the attention layer."""
        return Shape(self.query.shape[1], self.key.shape[1], self.query.shape[-1])

    def draw(self) -> Tensor:
        """A random number () from the call's generator, on the query's device, that further draws start from."""
        home = self.query.device if self.generator is None else self.generator.device
        return torch.randint(2**31, (), generator=self.generator, device=home).to(self.query.device)

    def seeded(self) -> "Call":
        """The same with a seed that is drawn, if the method uses one."""
        return replace(self, seed=self.draw()) if self.method.uses_seed else self

    def of(self, heads: list[int], method: LayerMethod) -> "Call":
        """The same for these query heads only, each with its key and value head, by `method`."""
        shared = self.query.shape[1] // self.key.shape[1]
        groups = [head // shared for head in heads]
        return replace(
            self,
            query=self.query[:, heads],
            key=self.key[:, groups],
            value=self.value[:, groups],
            method=method,
            valid=of_heads(self.valid, heads),
            bias=of_heads(self.bias, heads),
            sinks=None if self.sinks is None else self.sinks[heads],
            parameters=parameters_of(heads, method, self.parameters, self.shape),
            heads=numbers_of(heads, self.heads),
        )


def parameters_of(
    heads: list[int], method: LayerMethod, parameters: Mapping[str, Tensor], shape: Shape
) -> dict[str, Tensor]:
    """What some heads of a layer have of its parameters for their `method`."""
    kinds = method.parameters(shape) if parameters else {}
    return {
        name: parameters[name][heads] if each.per_head else parameters[name]
        for name, each in kinds.items()
        if name in parameters
    }
