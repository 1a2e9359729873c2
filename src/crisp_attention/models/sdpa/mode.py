"""A function mode that is on while an attention module runs, and the hooks that turn it on and off."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from crisp_attention.models.sdpa.calls import multi_head, scaled_dot_product
from crisp_attention.models.sdpa.finding import MULTIHEAD, SDPA
from crisp_attention.models.settings import settings_of

# on the module, under a compiler, which has no view of a thread's modes
RUNNING = "_crisp_running"


class Attending(TorchFunctionMode):
    """Computes the attention calls of one module by its method; all other functions of torch are as they were."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0
        self.failing: BaseException | None = None  # what was being handled before the module ran

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is SDPA:
            self.calls += 1
            return scaled_dot_product(self.module, *args, **(kwargs or {}))
        if func is MULTIHEAD:
            self.calls += 1
            return multi_head(self.module, *args, **(kwargs or {}))
        if func is Tensor.unflatten:  # the compiler does not follow its own call of super()
            return args[0].unflatten(*args[1:], **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)


def begin(module: nn.Module, inputs: Any) -> None:
    """The hook before a module runs."""
    settings = settings_of(module)
    if settings is None or (not settings.observers and settings.why_dense(module.training, None) is not None):
        return
    mode = Attending(module)
    if torch.compiler.is_compiling():
        getattr(module, RUNNING).append(mode)
    else:
        mode.failing = sys.exc_info()[1]
    mode.__enter__()


def end(module: nn.Module, inputs: Any, output: Any) -> None:
    """The hook after a module ran, or failed. Raises RuntimeError if it never called torch's attention."""
    if torch.compiler.is_compiling():
        running = getattr(module, RUNNING)
        if not running:
            return
        mode = running.pop()
        failed = False
    else:
        mode = _get_current_function_mode()
        if not isinstance(mode, Attending) or mode.module is not module:
            return
        failed = sys.exc_info()[1] is not mode.failing
    mode.__exit__(None, None, None)
    if mode.calls == 0 and not failed:
        settings = settings_of(module)
        raise RuntimeError(
            f"{settings and settings.name}: {type(module).__name__} did not call torch's scaled_dot_product_attention, "
            "so its attention would have been dense; another backend or attention implementation may be active"
        )
