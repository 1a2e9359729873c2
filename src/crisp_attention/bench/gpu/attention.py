"""Attention alone: dense backends by name, and every method with the kernels that compute it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from crisp_attention.bench.contender import Call, UnavailableError, learned
from crisp_attention.bench.gpu.cells import BOTH, DENSE, FORWARD, Cell
from crisp_attention.bench.gpu.measured import Candidate, difference, measure, unmeasured
from crisp_attention.bench.gpu.parts import Emit, Setting
from crisp_attention.bench.methods import named
from crisp_attention.bench.roster import free_bytes
from crisp_attention.errors import first_line
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call as KernelCall
from crisp_attention.methods.method import Method
from crisp_attention.methods.spec import parse

SPARSITY = 0.8
CHECKED = 1024  # tokens of the calls that are compared with the reference, at most
MATRICES = {"math": 5, dispatch.REFERENCE: 8}  # of scores in float32, held at a time, about
BACKENDS = dict(
    zip(
        DENSE,
        (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        ),
        strict=True,
    )
)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def drawn(seed: int, device: str, dtype: str, *sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Normal numbers, drawn on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    draws = (torch.randn(size, generator=generator, device=device) for size in sizes)
    return tuple(each.to(getattr(torch, dtype)) for each in draws)


@dataclass(frozen=True)
class Shape:
    """Self-attention of `heads` query heads on `groups` key heads, one example."""

    length: int
    heads: int = 16
    groups: int = 16
    width: int = 128
    dtype: str = "bfloat16"
    causal: bool = False

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        """Query, key and value: independent normal numbers, the same ones every time."""
        sizes = [(1, heads, self.length, self.width) for heads in (self.heads, self.groups, self.groups)]
        return drawn(0, device, self.dtype, *sizes)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of all scores in float32."""
        return 4 * self.heads * self.length**2


@dataclass(frozen=True)
class Ours:
    """A method, by its spec or its bare name at `SPARSITY`, with a kernel or the one that is chosen."""

    name: str
    method: str
    backend: str = dispatch.AUTO

    def at(self, length: int) -> Method:
        """The method for so many tokens."""
        return named(self.method, SPARSITY, length)


TOPK, BLOCKS = Ours("top-k", "topk"), "block_topk:sparsity=0.8"
WIDER = f"{BLOCKS}:block_size=128"
WINDOW = Ours("window of 257", "window:width=257")
SLA = Ours("sparse + linear", "sparse_linear")
TRITON_64 = Ours("block top-k, 64, Triton", BLOCKS, "triton_blocks")
METHODS = (
    TOPK,
    Ours("top-p", "topp"),
    Ours("threshold", "threshold"),
    Ours("entmax 1.5", "entmax"),
    TRITON_64,
    Ours("block top-k, 128, Triton", WIDER, "triton_blocks"),
    Ours("block top-k, 128, Flex", WIDER, "flex"),
    SLA,
    WINDOW,
)
LONG = tuple(each for each in METHODS if each.method in (BLOCKS, WIDER, "sparse_linear"))


@dataclass(frozen=True)
class Asked:
    """A column of a table, in both directions."""

    group: str
    shape: Shape
    methods: tuple[Ours, ...] = METHODS

    def cell(self, backward: bool) -> Cell:
        """As the table has it."""
        direction = BOTH if backward else FORWARD
        names = (*DENSE, *(each.name for each in self.methods))
        return Cell(self.group, f"{self.shape.length:,}", direction, names)


LENGTHS = (1024, 4096, 16384)
BFLOAT16, FLOAT32 = "attention, bfloat16", "attention, float32"
GROUPED, WIDE = "causal attention of 32 heads on 8, bfloat16", "heads of width 256, bfloat16"
NARROW = "heads of width 64, float32"
SEARCHED = "blocks of 64 by FlexAttention, bfloat16"
QUICK = (Asked(BFLOAT16, Shape(1024), (TOPK, TRITON_64)),)
PLANS: dict[str, tuple[Asked, ...]] = {
    "attention": (
        *(Asked(BFLOAT16, Shape(length)) for length in LENGTHS),
        Asked(BFLOAT16, Shape(8192), (TOPK,)),
        Asked(BFLOAT16, Shape(32768), LONG),
    ),
    "float32": (
        *(
            Asked(FLOAT32, Shape(length, dtype="float32"), tuple(m for m in METHODS if m != SLA))
            for length in LENGTHS
        ),
        # in wider heads its kernels take a minute to compile in float32
        Asked(NARROW, Shape(4096, 16, 16, 64, "float32"), (SLA,)),
    ),
    "causal": (
        *(
            Asked(
                GROUPED,
                Shape(length, 32, 8, causal=True),
                (TOPK, Ours("top-p", "topp"), Ours("block top-k, 64", BLOCKS), WINDOW),
            )
            for length in (1024, 4096)
        ),
        Asked(WIDE, Shape(4096, 8, 8, 256), (TOPK, TRITON_64)),
    ),
    "flex": (Asked(SEARCHED, Shape(4096), (Ours("block top-k, 64, Flex", BLOCKS, "flex"), TRITON_64)),),
}


def run_bfloat16(setting: Setting, emit: Emit) -> None:
    """The part of bfloat16, which a quick run has a little of."""
    run(QUICK if setting.quick else PLANS["attention"], setting, emit)


def run_float32(setting: Setting, emit: Emit) -> None:
    """The part of float32."""
    run(PLANS["float32"], setting, emit)


def run_causal(setting: Setting, emit: Emit) -> None:
    """The part of causal attention with grouped heads, and of wide ones."""
    run(PLANS["causal"], setting, emit)


def run_flex(setting: Setting, emit: Emit) -> None:
    """The part of FlexAttention where it searches for tiles, which takes its time."""
    run(PLANS["flex"], setting, emit)


def run(plan: tuple[Asked, ...], setting: Setting, emit: Emit) -> None:
    """Measure these, shortest first and forward alone first."""
    # every length compiled for itself, as many as there are
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 64
    known: dict[tuple[str, str, bool], float] = {}
    for asked in sorted(plan, key=lambda each: each.shape.length):
        for backward in (False, True):
            cell = asked.cell(backward)
            print(f"{cell.group}, {cell.column} tokens, {cell.direction}", flush=True)
            if setting.late:
                found = unmeasured(cell, asked.shape.dtype)
            else:
                candidates = _candidates(asked, backward, setting.device, known)
                found = measure(cell, asked.shape.dtype, candidates, setting)
            emit(found.plain())


def _candidates(
    asked: Asked, backward: bool, device: str, known: dict[tuple[str, str, bool], float]
) -> list[Candidate]:
    shape = asked.shape

    def candidate(
        name: str, attend: Attend, method: Method, matrices: Callable[[], int], dense: bool
    ) -> Candidate:
        def check() -> float:
            key = asked.group, name, backward
            matrices()  # raises where the kernel lacks something
            if key not in known:
                small = replace(shape, length=min(shape.length, CHECKED))
                found = _call(attend, small, backward, device)()
                known[key] = difference(found, _reference(method, small, backward, device))
            return known[key]

        def prepare() -> Call:
            _fits(matrices() * shape.matrix_bytes, device)
            return _call(attend, shape, backward, device)

        return Candidate(name, prepare, check, optional=dense)

    found = []
    for name, backend in BACKENDS.items():
        count = MATRICES["math"] if backend == SDPBackend.MATH else 0
        held = partial(int, count)
        found.append(candidate(name, _dense(backend, shape), parse("dense"), held, dense=True))
    for each in asked.methods:
        method = each.at(shape.length)
        needed = _matrices(each, shape, backward, device)
        found.append(candidate(each.name, _ours(each, method, shape), method, needed, dense=False))
    return found


def _dense(backend: SDPBackend, shape: Shape) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(
                query, key, value, is_causal=shape.causal, enable_gqa=shape.heads != shape.groups
            )

    return attend


def _ours(asked: Ours, method: Method, shape: Shape) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dispatch.attention(_kernel_call(method, shape, query, key, value), asked.backend)[0]

    return attend


def _kernel_call(method: Method, shape: Shape, *states: Tensor) -> KernelCall:
    query, key, value = states
    parameters = learned(method, query, key) if method.has_parameters else {}
    return KernelCall(
        query, key, value, method, query.shape[-1] ** -0.5, causal=shape.causal, parameters=parameters
    )


def _matrices(asked: Ours, shape: Shape, backward: bool, device: str) -> Callable[[], int]:
    """How many matrices of scores are held: several where nothing but the reference computes a call."""

    def count() -> int:
        states = [each.requires_grad_(backward) for each in shape.inputs(device)]
        call = _kernel_call(asked.at(shape.length), shape, *states)
        try:
            kernels = {part.kernel for part in dispatch.plan(call, asked.backend)}
        except ValueError as reason:
            raise UnavailableError(first_line(reason)) from None
        return MATRICES[dispatch.REFERENCE] if dispatch.REFERENCE in kernels else 0

    return count


def _fits(needed: int, device: str) -> None:
    if needed and needed > (free := free_bytes(device)):
        raise UnavailableError(f"needs about {needed / 2**30:.0f} GiB, only {free / 2**30:.0f} GiB are free")


def _call(attend: Attend, shape: Shape, backward: bool, device: str) -> Callable[[], tuple[Tensor, ...]]:
    inputs = shape.inputs(device)
    if not backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (attend(*inputs),)

        return forward
    for each in inputs:
        each.requires_grad_()
    gradient = _slope(shape, device)
    return lambda: torch.autograd.grad(attend(*inputs), inputs, gradient)


def _slope(shape: Shape, device: str) -> Tensor:
    """The gradient of the output."""
    return drawn(1, device, shape.dtype, (1, shape.heads, shape.length, shape.width))[0]


@cache
def _reference(method: Method, shape: Shape, backward: bool, device: str) -> tuple[Tensor, ...]:
    """By the definition, in float32, of the numbers that the others get; on the host, so that they take no room."""
    inputs = [each.float().requires_grad_(backward) for each in shape.inputs(device)]
    output = dispatch.attention(_kernel_call(method, shape, *inputs), dispatch.REFERENCE)[0]
    found = torch.autograd.grad(output, inputs, _slope(shape, device).float()) if backward else (output,)
    return tuple(each.detach().cpu() for each in found)
