"""The part `hooks`: what it costs that hooks and a function mode find the attention of any model."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from crisp_attention.bench.contender import Absent, Call
from crisp_attention.bench.results import Hooked
from crisp_attention.bench.rounds import Effort, Spread, clock_of, interleaved, warm_up
from crisp_attention.errors import first_line
from crisp_attention.methods.method import Method
from crisp_attention.models.apply import sparsify
from crisp_attention.models.sdpa.calls import scaled_dot_product
from crisp_attention.models.sparse_model import SparseModel

HOOKED, DIRECT = "by hooks and a mode", "called directly"
REPEATED = 20  # forward passes that are timed together: one takes a fraction of a millisecond
TOKENS = 16  # few, as what hooks cost does not depend on them, and how precisely it is timed does
GPT, DIT, FLUX = "a GPT written by hand", "DiT", "Flux"
MODELS = (GPT, DIT, FLUX)
States = dict[str, Tensor]
Forward = Callable[..., Any]


class Attention(nn.Module):
    """As many write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.num_heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        query, key, value = (
            each.view(batch, length, self.num_heads, -1).transpose(1, 2)
            for each in self.qkv(states).split(width, dim=2)
        )
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(found.transpose(1, 2).reshape(batch, length, width))


class Decoder(nn.Module):
    """A GPT of six layers, 384 wide."""

    def __init__(self, width: int = 384, heads: int = 6, layers: int = 6) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            for _ in range(layers)
        )

    def forward(self, states: Tensor) -> tuple[Tensor]:
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            states = states + attention(functional.layer_norm(states, states.shape[-1:]))
            states = states + mlp(states)
        return (states,)


@dataclass(frozen=True)
class Subject:
    """A model, what it is called with in training, and what one of its attention modules is, with few tokens."""

    name: str
    model: Any  # mypy knows diffusers' classes as anything but modules
    inputs: dict[str, Any]
    states: States


def measure_hooks(method: Method, effort: Effort, told: Callable[[str], None]) -> list[Hooked]:
    """Time an attention module of each model, its method found by hooks or called directly, and a step of training."""
    found = []
    for name in MODELS:
        told(f"hooks, {name}")
        try:
            found.append(_measured(_subject(name), method, effort))
        except ImportError:
            absent = [Absent(name, "diffusers is not installed (pip install diffusers)")]
            found.append(Hooked(name, absent=absent))
    return found


def _subject(name: str) -> Subject:
    torch.manual_seed(0)
    few = {"hidden_states": torch.randn(1, TOKENS, 384)}
    if name == GPT:
        return Subject(
            name, Decoder(), {"states": torch.randn(8, 128, 384)}, {"states": few["hidden_states"]}
        )
    if name == DIT:
        from diffusers import DiTTransformer2DModel

        dit = DiTTransformer2DModel(
            num_attention_heads=6,
            attention_head_dim=64,
            in_channels=4,
            num_layers=6,
            sample_size=32,
            patch_size=2,
        )
        time, classes = torch.full((4,), 3), torch.arange(4)
        inputs = {"hidden_states": torch.randn(4, 4, 32, 32), "timestep": time, "class_labels": classes}
        return Subject(name, dit, inputs, few)
    from diffusers import FluxTransformer2DModel

    flux = FluxTransformer2DModel(
        in_channels=16, num_layers=3, num_single_layers=3, attention_head_dim=64, num_attention_heads=6,
        joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 256, 16),
        "encoder_hidden_states": torch.randn(2, 32, 64),
        "pooled_projections": torch.randn(2, 64),
        "timestep": torch.full((2,), 0.3),
        "img_ids": torch.stack([torch.zeros(256), torch.arange(256) // 16, torch.arange(256) % 16], dim=1),
        "txt_ids": torch.zeros(32, 3),
    }
    return Subject(name, flux, inputs, few | {"encoder_hidden_states": torch.randn(1, TOKENS, 384)})


def _measured(subject: Subject, method: Method, effort: Effort) -> Hooked:
    sparse = SparseModel.of(sparsify(subject.model.eval(), method, dense_tokens=None))
    module = next(layer.module for layer in sparse.layers if layer.name in sparse.methods)
    without = copy.deepcopy(module)
    without._forward_pre_hooks.clear()
    without._forward_hooks.clear()
    added = _added(without, module, without, subject.states, effort)
    compiled, absent = None, []
    try:
        # as part of something larger: the hooks of what is compiled itself stay outside of its graph
        hooked, direct = (torch.compile(_forward_of(each), fullgraph=True) for each in (module, without))
        compiled = _added(without, hooked, direct, subject.states, effort)
    except RuntimeError as error:
        absent.append(Absent("compiled", f"fails: {first_line(error)}"))
    taken = _step_seconds(subject, effort)
    return Hooked(
        model=subject.name,
        module=type(module).__name__,
        calls=_calls_in(without, subject.states),
        seconds=added,
        compiled_seconds=compiled,
        step_seconds=taken,
        step_share=added.median * len(sparse.methods) / taken,
        absent=absent,
    )


def _added(without: nn.Module, hooked: Forward, direct: Forward, states: States, effort: Effort) -> Spread:
    """Seconds that hooks add to one forward pass; `without`: the module without them, which `direct` runs."""
    calls: dict[str, Call] = {
        HOOKED: partial(_repeat, hooked, states),
        DIRECT: partial(_called_directly, without, direct, states),
    }
    with torch.no_grad():
        for call in calls.values():
            warm_up(call)
        times = interleaved(calls, effort, clock_of("cpu"))
    both = zip(times[HOOKED], times[DIRECT], strict=True)
    return Spread.of([(one - other) / REPEATED for one, other in both])


def _forward_of(module: nn.Module) -> Forward:
    return lambda **states: module(**states)


def _repeat(forward: Forward, states: States) -> None:
    for _ in range(REPEATED):
        forward(**states)


def _called_directly(module: nn.Module, forward: Forward, states: States) -> None:
    """The same without hooks and mode: torch's function is another one for the while, in all of this process."""

    def attend(*args: Any, **kwargs: Any) -> Tensor:
        return scaled_dot_product(module, *args, **kwargs)

    with patch.object(functional, "scaled_dot_product_attention", attend):
        _repeat(forward, states)


class _Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _calls_in(module: nn.Module, states: States) -> int:
    """How many calls of torch a mode sees while the module runs."""
    with torch.no_grad(), _Counting() as counting:
        module(**states)
    return counting.calls


def _step_seconds(subject: Subject, effort: Effort) -> float:
    """Of one step of training the whole model: forward, backward, AdamW."""
    model = subject.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        model(**subject.inputs)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    warm_up(step)
    return median(interleaved({"": step}, effort, clock_of("cpu"))[""])
