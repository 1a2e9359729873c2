"""Kernels read memory by addresses: whatever view a tensor is, they do what they do with a plain copy of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crisp_attention import BlockTopK, Entmax, Method, NofM, TopK
from crisp_attention.kernels import dispatch
from crisp_attention.kernels.call import Call
from crisp_attention.kernels.memory import apart
from crisp_attention.kernels.registry import KERNELS

SHAPE = BATCH, HEADS, LENGTH, WIDTH = 2, 3, 48, 16
METHODS = {
    "topk": Method(rule=TopK(0.6)),
    "nofm": Method(rule=NofM(1, 4)),
    "blocks": Method(layout=BlockTopK(0.5, block_size=16)),
}
ON_GPUS = ("triton", "triton_blocks", "flex")
# where there is no GPU, torch compiles FlexAttention once more for every view, and Triton's interpreter takes seconds
SLOW = [] if torch.cuda.is_available() else ON_GPUS
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW) + [pytest.mark.cuda] * (k in ON_GPUS))
        for k in [*KERNELS, dispatch.REFERENCE]
    ],
)


def strided(*strides: int) -> Callable[..., Tensor]:
    return lambda memory, *shape: memory.as_strided(shape, strides)


def windows(memory: Tensor, b: int, h: int, n: int, d: int) -> Tensor:
    """Every query, head and example is a window of one signal, one step after the one before."""
    return memory[: b + h + n + d - 3].unfold(0, d, 1).unfold(0, n, 1).unfold(0, h, 1).permute(0, 3, 2, 1)


VIEWS: dict[str, Callable[..., Tensor]] = {
    "windows of a signal": windows,
    "heads that overlap": strided(64, 1, 1, 1),
    "rows that overlap": strided(500, 100, 3, 1),
    "expanded over examples": lambda m, b, h, n, d: m[: h * n * d].view(1, h, n, d).expand(b, -1, -1, -1),
    "expanded over heads": lambda m, b, h, n, d: m[: b * n * d].view(b, 1, n, d).expand(-1, h, -1, -1),
    "expanded over rows": strided(96, 32, 0, 2),
    "expanded over columns": strided(144, 48, 1, 0),
    "columns first": lambda m, b, h, n, d: m[: b * h * n * d].view(b, h, d, n).transpose(2, 3),
    "heads inside rows": lambda m, b, h, n, d: m[: b * h * n * d].view(b, n, h, d).transpose(1, 2),
    "all reversed": lambda m, b, h, n, d: m[: b * h * n * d].view(d, n, h, b).permute(3, 2, 1, 0),
    "every second": strided(4 * 48 * 16 * 3, 4 * 48 * 16, 64, 2),
}

PLACES = ("query", "key", "value", "valid", "bias", "slopes")


def memory(seed: int) -> Tensor:
    """Whole eighths, whose products are exact, so that every kernel keeps the same of them."""
    numbers = torch.randint(-16, 17, (40_000,), generator=torch.Generator().manual_seed(seed))
    return (numbers / 8).to(DEVICE)


def attend(call: Call, kernel: str, slopes: Tensor) -> list[Tensor]:
    """Output and gradients of query, key and value, which are leaves as they lie."""
    leaves = [each.detach().requires_grad_() for each in (call.query, call.key, call.value)]
    learner = replace(call, query=leaves[0], key=leaves[1], value=leaves[2])
    if dispatch.lacks(kernel, learner) is not None:
        return [dispatch.attention(call, kernel)[0]]
    output, _ = dispatch.attention(learner, kernel)
    return [output.detach(), *torch.autograd.grad(output, leaves, slopes)]


def a_call(method: Method, **more) -> Call:
    given = {name: memory(at)[:4608].view(SHAPE) for at, name in enumerate(("query", "key", "value"))}
    return Call(**(given | {"scale": 0.25, "method": method} | more))


@every_kernel
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_a_view_is_what_a_copy_of_it_is(kernel, method, place) -> None:
    if dispatch.lacks(kernel, a_call(method)) is not None:
        return
    # views in turn: each at three places, at one where all take too long
    turns = len(PLACES) if kernel in SLOW else 2
    named = list(VIEWS.items())[PLACES.index(place) % turns :: turns]
    for name, view in named:
        slopes, more = memory(7)[:4608].view(SHAPE), {}
        if place == "slopes":
            slopes = view(memory(8), *SHAPE)
        elif place in ("query", "key", "value"):
            more[place] = view(memory(8), *SHAPE)
        else:  # block layouts take masks of keys alone
            rows = (BATCH, 1, 1, LENGTH) if method.block_size else (BATCH, HEADS, LENGTH, LENGTH)
            drawn = view(memory(9), *rows)
            more[place] = (drawn > -1).expand(-1, -1, LENGTH, -1) if place == "valid" else drawn
        call = a_call(method, **more)
        if dispatch.lacks(kernel, call) is not None:
            continue
        real = _real(call)
        plain = {key: value.clone(memory_format=torch.contiguous_format) for key, value in more.items()}
        wanted = attend(a_call(method, **plain), dispatch.REFERENCE, slopes * real)
        found = attend(call, kernel, slopes if place == "slopes" else slopes * real)
        for what, one, other in zip(("output", "query", "key", "value"), found, wanted, strict=False):
            rows = real if what == "output" else torch.ones((), device=DEVICE)
            assert torch.allclose(one * rows, other * rows, rtol=1e-4, atol=1e-5), (name, what)


def _real(call: Call) -> Tensor:
    if not call.method.block_size or call.valid is None:
        return torch.ones((), device=DEVICE)
    return call.valid[:, :, 0, :, None].float()  # blocks give padded queries what they like


def overlaps(tensor: Tensor) -> bool:
    """Whether two of its elements share memory: their places from the strides alone."""
    index = torch.cartesian_prod(*(torch.arange(n) for n in tensor.shape))
    places = (index * torch.tensor(tensor.stride())).sum(dim=-1)
    return len(places.unique()) < len(places)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_where_elements_share_memory_they_are_copied_apart(view) -> None:
    tensor = view(memory(0), *SHAPE)
    found = apart(tensor)
    assert found.equal(tensor)
    assert not overlaps(found)
    assert (found is tensor) == (not overlaps(tensor))


def spread(tensor: Tensor) -> Tensor:
    """The same numbers, with a gap after each."""
    return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]


@every_kernel
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_was_saved_may_come_back_laid_out_in_another_way(kernel, method) -> None:
    call, slopes = (
        a_call(method, valid=memory(9)[:LENGTH].view(1, 1, 1, -1) > -1),
        memory(7)[:4608].view(SHAPE),
    )
    if dispatch.lacks(kernel, replace(call, query=call.query.detach().requires_grad_())) is not None:
        return
    if kernel == "flex" and DEVICE == "cuda":
        pytest.skip(
            "torch's compiled FlexAttention takes what it saved as it was laid out, and raises otherwise"
        )
    plain = attend(call, kernel, slopes)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, spread):
        found = attend(call, kernel, slopes)
    assert all(one.equal(other) for one, other in zip(found, plain, strict=True))


@pytest.mark.parametrize("place", ["parameters", "sinks"])
def test_what_only_the_reference_takes_may_be_any_view(place) -> None:
    numbers = memory(5)[:HEADS] / 100
    more = {"parameters": {"rule.alpha": numbers}} if place == "parameters" else {"sinks": numbers}
    method = Method(rule=Entmax("learned")) if place == "parameters" else METHODS["topk"]
    odd = {
        name: {"rule.alpha": spread(numbers)} if name == "parameters" else spread(value)
        for name, value in more.items()
    }
    slopes = torch.ones((), device=DEVICE).expand(*a_call(method, **more).query.shape)
    plain, found = (attend(a_call(method, **given), dispatch.REFERENCE, slopes) for given in (more, odd))
    assert all(one.equal(other) for one, other in zip(found, plain, strict=True))
