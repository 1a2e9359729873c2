"""The notice for diffusers: loading a model whose config holds settings warns that they are not active.

Imports nothing heavy: the package's `__init__` installs it as soon as diffusers' models are imported.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from wrapt import wrap_function_wrapper

from crisp_attention.models.notice import is_restoring, notify

CONFIG_KEY = "crisp_attention"


def install(modeling_utils: ModuleType) -> None:
    """Let `from_pretrained` of diffusers' models warn. Nothing else changes."""
    wrap_function_wrapper(modeling_utils, "ModelMixin.from_pretrained", _load)


def _load(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = wrapped(*args, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    if CONFIG_KEY in model.config and not is_restoring():
        notify(
            "This checkpoint was trained with sparse attention, but a model loaded this way is dense, and without "
            "what its attention may have learned, until crisp_attention.restore(model) is called. "
            "crisp_attention.load(path) does both, crisp_attention.load_pipeline(path) for a pipeline."
        )
    return found
