"""A function mode that is on while an attention module runs, and the hooks that turn it on and off."""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from crisp_attention.models.sdpa.calls import attends_to_others, multi_head, scaled_dot_product
from crisp_attention.models.sdpa.finding import MULTIHEAD, SDPA
from crisp_attention.models.settings import settings_of

# on the module, under a compiler, which has no view of a thread's modes
RUNNING = "_crisp_running"


class Attending(TorchFunctionMode):
    """Computes the attention calls of one module by its method; all other functions of torch are as they were.

    frame: that of the call of the module, None under a compiler. A mode outlives it if an interruption such as Ctrl-C
    skips the hook after the module, and then does nothing any more.
    """

    def __init__(self, module: nn.Module, frame: FrameType | None) -> None:
        super().__init__()
        self.module = module
        self.frame = frame
        self.calls = 0
        self.others = 0  # of them to tokens of something else
        self.failing: BaseException | None = None  # what was being handled before the module ran
        self.with_gradients = torch.is_grad_enabled()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is SDPA or func is MULTIHEAD:
            if self.frame is None or self.runs():
                return self._attend(func, args, kwargs or {})
        elif func is Tensor.unflatten:  # the compiler does not follow its own call of super()
            return args[0].unflatten(*args[1:], **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)

    def _attend(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        if (
            self.frame is not None
            and self.with_gradients
            and not torch.is_grad_enabled()
            and self.module.training
        ):
            raise RuntimeError(
                f"{type(self.module).__name__} calls attention without gradients, as reentrant checkpointing inside of "
                "it does, which would compute it again as dense attention: checkpoint the whole module instead"
            )
        handler = scaled_dot_product if func is SDPA else multi_head
        if self.frame is not None and attends_to_others(self.module, func, *args, **kwargs):
            self.others += 1
        return handler(self.module, *args, **kwargs)

    def runs(self) -> bool:
        """Whether the call of the module that it was turned on for has not ended."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


def begin(module: nn.Module, inputs: Any) -> None:
    """The hook before a module runs."""
    settings = settings_of(module)
    if settings is None or (not settings.observers and settings.why_dense(module.training, None) is not None):
        return
    if torch.compiler.is_compiling():
        mode = Attending(module, None)
        getattr(module, RUNNING).append(mode)
    else:
        drop_what_was_left()
        mode = Attending(module, sys._getframe(1))
        mode.failing = sys.exc_info()[1]
    mode.__enter__()


def drop_what_was_left() -> None:
    """Turn off the modes of modules whose call was interrupted."""
    while isinstance(mode := _get_current_function_mode(), Attending) and mode.frame and not mode.runs():
        mode.__exit__(None, None, None)


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
    mode.frame = None
    if failed or 0 < mode.calls != mode.others:
        return
    settings = settings_of(module)
    assert settings is not None  # as the mode was turned on
    what = f"{settings.name}: {type(module).__name__}"
    if mode.calls and settings.why_dense(module.training, None) is not None:
        return  # it is only observed
    if mode.calls:
        raise RuntimeError(
            f"{what} attended to other tokens than its queries only, so it would have been dense: it is "
            "cross-attention, or pools its keys. Choose it as such, with attention='cross' or 'all' and inputs=, or "
            "leave it out with layers="
        )
    raise RuntimeError(
        f"{what} did not call torch's scaled_dot_product_attention, so its attention would have been dense: another "
        "backend or attention implementation may be active, or it does without in some passes (leave it out with "
        "layers= then)"
    )
